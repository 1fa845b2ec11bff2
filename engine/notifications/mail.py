"""Sends notes by email, one plain-text message to one recipient. It trusts no text to be fit for a header."""

import re
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Final

import aiosmtplib

from engine.errors import AddressRefused, RequestRejected, UpstreamUnavailable
from engine.notifications.messages import Note
from engine.settings import NotificationSettings

_WITHIN_SECONDS = 20.0
_LONGEST = 254
_ADDRESS: Final = re.compile(
    r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[a-z0-9-]+(?:\.[a-z0-9-]+)*",
    re.IGNORECASE,
)


class Mail:
    """Sends notes through the mail server that the settings name."""

    def __init__(self, settings: NotificationSettings, public_url: str) -> None:
        self._settings = settings
        self._public_url = public_url

    def checked(self, address: str) -> tuple[str, str]:
        """Return an address that mail can be sent to, and its label; raises AddressRefused."""
        if self._settings.smtp_host is None:
            raise AddressRefused(
                "No mail leaves here: an administrator has to set BYLINE_NOTIFICATIONS__SMTP_HOST."
            )
        if len(address) > _LONGEST or not _ADDRESS.fullmatch(address):
            raise AddressRefused("This is not an email address: write one like name@example.com.")
        local, _, domain = address.rpartition("@")
        return address, f"{local[0]}…@{domain}"

    async def send(self, note: Note, address: str) -> None:
        """Hand the note to the mail server; raises the UpstreamFailed that says whether another try may succeed."""
        settings = self._settings
        if settings.smtp_host is None or settings.sender is None:
            raise UpstreamUnavailable("No mail leaves here: BYLINE_NOTIFICATIONS__SMTP_HOST is not set.")
        password = settings.smtp_password
        try:
            await aiosmtplib.send(
                self._message(note, address, settings.sender),
                sender=parseaddr(settings.sender)[1],
                recipients=[address],
                hostname=settings.smtp_host,
                port=settings.smtp_port,
                username=settings.smtp_username,
                password=None if password is None else password.get_secret_value(),
                use_tls=settings.smtp_tls == "tls",
                start_tls=settings.smtp_tls == "starttls",
                timeout=_WITHIN_SECONDS,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _told(error) from None

    def _message(self, note: Note, address: str, sender: str) -> EmailMessage:
        name, own = parseaddr(sender)
        message = EmailMessage()
        try:
            message["From"] = Address(name, addr_spec=own)
            message["To"] = Address(addr_spec=address)
        except (HeaderParseError, ValueError, IndexError):
            raise UpstreamUnavailable(
                "BYLINE_NOTIFICATIONS__SENDER is not an address that mail can come from."
            ) from None
        message["Subject"] = note.title
        message["Date"] = format_datetime(note.at)
        # The id is the same at every try, so that a mailbox that accepted an earlier one shows the note once.
        message["Message-ID"] = f"<{note.id}@{own.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message["List-Unsubscribe"] = f"<{self._public_url}/notifications>"
        link = "" if note.link is None else f"\n{note.link}\n"
        choose = f"You chose to be told of this: {self._public_url}/notifications"
        message.set_content(f"{note.title}.\n\n{note.text}\n{link}\n-- \n{choose}\n")
        return message


def _told(error: Exception) -> RequestRejected | UpstreamUnavailable:
    """Return the error for a failed message, with the server's code only, since its text may repeat the address."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused) and error.recipients:
        error = error.recipients[0]
    mistaken_here = isinstance(error, aiosmtplib.SMTPAuthenticationError | aiosmtplib.SMTPConnectError)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if 500 <= error.code < 600 and not mistaken_here:
            return RequestRejected(
                f"The mail server refused the message for good ({error.code}).", status=error.code
            )
        return UpstreamUnavailable(
            f"The mail server did not take the message ({error.code}).", status=error.code
        )
    return UpstreamUnavailable(f"The mail server cannot be reached ({type(error).__name__}).")
