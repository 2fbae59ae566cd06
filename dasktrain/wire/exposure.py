"""Whether others than its users can reach a cluster."""

from urllib.parse import urlsplit

LOOPBACK = ("127.", "localhost", "::1")


def exposed(scheduler: str) -> str | None:
    """Return what there is to fear at a scheduler's address, if others can reach it and it does not use TLS."""
    address = urlsplit(scheduler)
    if address.scheme != "tcp" or (address.hostname or "").startswith(LOOPBACK):
        return None
    return (
        f"A cluster that others can reach should use TLS, however {scheduler} does not: whoever reaches it can run "
        "code there, and read what crosses it; start it with a Security, or keep its network closed"
    )
