"""E-mail messages (RFC 5322)."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage

from ragtune.corpus.readers.html import read_html
from ragtune.corpus.readers.parsed import Parsed, one_line, stated
from ragtune.errors import InputError

_SHOWN = ("From", "To", "Cc", "Date")


def read_eml(data: bytes) -> Parsed:
    """The subject as heading, who wrote to whom and when, then the plain text, or the HTML where there is none.

    Attachments are not read; their names are the metadata's `warning`.

    Raises: InputError when there is no subject and no text.
    """
    message = message_from_bytes(data, _class=EmailMessage, policy=policy.default)
    subject = one_line(str(message["Subject"] or ""))
    body = _body(message)
    if not subject and not body:
        raise InputError("no subject and no text")
    heads = [f"{name}: {one_line(str(message[name]))}" for name in _SHOWN if message[name]]
    files = [part.get_filename() or part.get_content_type() for part in message.iter_attachments()]
    warning = f"attachments are not read: {', '.join(files)}; save them beside the message" if files else ""
    date = getattr(message["Date"], "datetime", None)
    metadata = stated(author=message["From"], created=date, warning=warning)
    parts = [f"# {subject}" if subject else "", "\n".join(heads), body]
    return Parsed("\n\n".join(filter(None, parts)), subject, metadata)


def _body(message: EmailMessage) -> str:
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    if part.get_content_type() == "text/html":
        return read_html(str(part.get_content()).encode("utf-8", "replace")).text
    return str(part.get_content()).strip()
