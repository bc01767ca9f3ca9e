"""The merged model in the form that other engines take."""
