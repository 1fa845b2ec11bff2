"""What principals and the service consented to: grants, their accounts, renewals and revocations."""
