"""What carries identity through Temporal, parks runs and guards actions."""
