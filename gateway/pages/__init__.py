"""The pages on which people answer, look after what they granted and made, and find their way; one a module."""
