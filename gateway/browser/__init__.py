"""What every page stands on: the session of the browser that asks, and the one way in which a page is made."""
