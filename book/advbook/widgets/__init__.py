"""Live panels for JupyterLab."""
