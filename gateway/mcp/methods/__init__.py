"""The methods of the Model Context Protocol, one family a file."""
