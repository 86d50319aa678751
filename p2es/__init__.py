"""The science of P2Es: from a pulse wave (PPG) and demographics to a 12-lead ECG.

Nothing in this package imports Ray, MLflow, FAISS or FastAPI, so it runs in a notebook or on any GPU box.
"""
