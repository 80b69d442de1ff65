"""Plain web pages about accounts: login, invitation, my data. They need neither Gradio nor a script."""
