"""Says in an audit event which administrator did it: a principal, or somebody with a shell where Byline runs."""

from dataclasses import replace

from engine.audit.trail import AuditEvent
from engine.identity.model import Principal, ShellUser

Administrator = Principal | ShellUser
"""Who administers: a signed-in principal is the event's `by`, and the user of a shell is its `actor`."""


def attribute_event(audit_event: AuditEvent, administrator: Administrator) -> AuditEvent:
    """Return the event with this administrator as who did it."""
    if isinstance(administrator, ShellUser):
        return replace(audit_event, actor=administrator)
    return replace(audit_event, by=administrator)
