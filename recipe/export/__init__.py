"""Exports the merged model for other engines."""
