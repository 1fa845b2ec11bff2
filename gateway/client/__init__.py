"""The command line as a client of a gateway. It uses the REST API and OAuth, and only the errors of `engine`."""
