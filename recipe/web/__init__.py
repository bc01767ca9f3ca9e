"""The web page (`just web`): serve.py starts it, app.py is the Streamlit script, inference_queue.py asks the models."""
