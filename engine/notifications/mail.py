"""Sends notes by email, one plain-text message to one recipient. It trusts no text to be fit for a header."""

import re
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Final

import aiosmtplib

from engine.errors import AddressRefused, RequestRejected, UpstreamUnavailable
from engine.notifications.messages import ChannelNote
from engine.settings import NotificationSettings
from engine.waiting.page_paths import PageLinks

_SMTP_TIMEOUT_SECONDS = 20.0
_MAX_ADDRESS_CHARS = 254
_ADDRESS_PATTERN: Final = re.compile(
    r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[a-z0-9-]+(?:\.[a-z0-9-]+)*",
    re.IGNORECASE,
)


class MailSender:
    """Sends notes through the mail server that the settings name."""

    def __init__(self, settings: NotificationSettings, page_links: PageLinks) -> None:
        self._settings = settings
        self._notifications_link = page_links.build_notifications_link()

    def check_address(self, address: str) -> tuple[str, str]:
        """Return an address that mail can be sent to, and its label; raises AddressRefused."""
        if self._settings.smtp_host is None:
            raise AddressRefused(
                "No mail leaves here: an administrator has to set BYLINE_NOTIFICATIONS__SMTP_HOST."
            )
        if len(address) > _MAX_ADDRESS_CHARS or not _ADDRESS_PATTERN.fullmatch(address):
            raise AddressRefused("This is not an email address: write one like name@example.com.")
        local_part, _, mail_domain = address.rpartition("@")
        return address, f"{local_part[0]}…@{mail_domain}"

    async def send_note(self, note: ChannelNote, mail_address: str) -> None:
        """Hand the note to the mail server; raises the UpstreamFailed that says whether another try may succeed."""
        settings = self._settings
        if settings.smtp_host is None or settings.sender is None:
            raise UpstreamUnavailable("No mail leaves here: BYLINE_NOTIFICATIONS__SMTP_HOST is not set.")
        smtp_password = settings.smtp_password
        try:
            await aiosmtplib.send(
                self._build_message(note, mail_address, settings.sender),
                sender=parseaddr(settings.sender)[1],
                recipients=[mail_address],
                hostname=settings.smtp_host,
                port=settings.smtp_port,
                username=settings.smtp_username,
                password=None if smtp_password is None else smtp_password.get_secret_value(),
                use_tls=settings.smtp_tls == "tls",
                start_tls=settings.smtp_tls == "starttls",
                timeout=_SMTP_TIMEOUT_SECONDS,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _to_delivery_error(error) from None

    def _build_message(self, note: ChannelNote, mail_address: str, sender_text: str) -> EmailMessage:
        sender_name, sender_address = parseaddr(sender_text)
        mail_message = EmailMessage()
        try:
            mail_message["From"] = Address(sender_name, addr_spec=sender_address)
            mail_message["To"] = Address(addr_spec=mail_address)
        except (HeaderParseError, ValueError, IndexError):
            raise UpstreamUnavailable(
                "BYLINE_NOTIFICATIONS__SENDER is not an address that mail can come from."
            ) from None
        mail_message["Subject"] = note.title
        mail_message["Date"] = format_datetime(note.occurred_at)
        # The id is the same at every try, so that a mailbox that accepted an earlier one shows the note once.
        mail_message["Message-ID"] = f"<{note.id}@{sender_address.rpartition('@')[2]}>"
        mail_message["Auto-Submitted"] = "auto-generated"
        mail_message["List-Unsubscribe"] = f"<{self._notifications_link}>"
        link_text = "" if note.link_url is None else f"\n{note.link_url}\n"
        footer_text = f"You chose to be told of this: {self._notifications_link}"
        mail_message.set_content(f"{note.title}.\n\n{note.body_text}\n{link_text}\n-- \n{footer_text}\n")
        return mail_message


def _to_delivery_error(error: Exception) -> RequestRejected | UpstreamUnavailable:
    """Return the error for a failed message, with the server's code only, since its text may repeat the address."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused) and error.recipients:
        error = error.recipients[0]
    is_misconfigured = isinstance(error, aiosmtplib.SMTPAuthenticationError | aiosmtplib.SMTPConnectError)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if 500 <= error.code < 600 and not is_misconfigured:
            return RequestRejected(
                f"The mail server refused the message for good ({error.code}).", status_code=error.code
            )
        return UpstreamUnavailable(
            f"The mail server did not take the message ({error.code}).", status_code=error.code
        )
    return UpstreamUnavailable(f"The mail server cannot be reached ({type(error).__name__}).")
