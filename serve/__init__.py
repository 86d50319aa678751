"""The endpoint: a Ray Serve application, its schema and page, and a client that needs no Ray."""
