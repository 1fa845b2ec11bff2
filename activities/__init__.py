"""Actions on upstream systems, one file for each system. They handle no tokens, sign-in links or waits."""
