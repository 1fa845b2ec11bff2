"""Changes of resources: runs report them, and gateways read them for the clients that listen."""
