"""The web page (`just web`): serve.py starts it, app.py is what Streamlit shows, inference_queue.py asks the models."""
