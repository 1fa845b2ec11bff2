"""The command line as a client of a gateway: it knows the REST API and OAuth, and of the engine its errors alone."""
