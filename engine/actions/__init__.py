"""Actions: how an activity declares one, and the client by which it calls its upstream."""
