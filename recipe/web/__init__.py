"""The web page (`just web`): serve.py starts it, app.py is what Streamlit shows, desk.py asks the models."""
