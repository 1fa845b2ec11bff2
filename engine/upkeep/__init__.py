"""Periodic work in nobody's name: keep grants alive, revoke ended ones upstream, and delete what is over."""
