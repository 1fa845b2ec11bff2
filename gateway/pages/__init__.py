"""Pages for people: to answer, to manage what they granted and made, and to find their way. One page a module."""
