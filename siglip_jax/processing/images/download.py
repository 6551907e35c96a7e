"""Downloads one file of a limited size within a limited time.

The time is that of the whole download: name lookup, connection, headers, redirects and body share one deadline, which
every wait on the network is cut to, so a server that sends a byte now and then cannot prolong it.
"""

import functools
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_CHUNK = 2**16
_LONGEST_NAME = 200  # characters of a URL in a message
_PLAIN = "!#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"  # what a URL keeps as it is, beside letters and digits


def download(url: str, timeout: float, max_bytes: int) -> bytes:
    """Returns the contents of an http or https URL.

    A redirect from a public address to a private one, which could reach servers that only this machine can, is refused.

    Args:
      url: the URL.
      timeout: largest duration of the whole download, in seconds.
      max_bytes: largest number of bytes.

    Raises:
      FileNotFoundError: if the server has no such file.
      ValueError: if the URL is of another scheme, a limit is exceeded, or the download fails.
    """
    name = url if len(url) <= _LONGEST_NAME else f"{url[:_LONGEST_NAME]}..."
    scheme = url.split("://", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"{name}: URL must be http or https, got {scheme}")
    late = f"{name}: took longer than {timeout} seconds; raise timeout to wait longer"
    data = bytearray()
    try:
        request = urllib.request.Request(_quoted(url), headers={"User-Agent": "siglip_jax"})
    except ValueError as error:
        raise ValueError(f"{name}: URL must name a server, got another text ({error})") from None
    try:
        with _opener(_Route(time.monotonic() + timeout)).open(request, timeout=timeout) as response:
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise ValueError(
                        f"{name}: data must have at most {max_bytes} bytes, got at least {len(data)}; raise max_bytes"
                        " if you trust the source"
                    )
    except urllib.error.HTTPError as error:
        error.close()
        kind = FileNotFoundError if error.code in (404, 410) else ValueError
        raise kind(f"{name}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise ValueError(late) from None
        cause = " ".join(str(reason).split()) or type(error).__name__
        raise ValueError(f"{name}: cannot be downloaded ({cause})") from error
    return bytes(data)


def _quoted(url: str) -> str:
    """Returns the URL with spaces and letters that are not ASCII escaped in its path and query, as browsers do."""
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(part, safe=_PLAIN) for part in (parts.path, parts.query))
    return parts._replace(path=path, query=query).geturl()


def _opener(route: "_Route") -> urllib.request.OpenerDirector:
    """Returns an opener of http and https only; urllib's default opener would also follow a redirect to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Handler(route),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Route:
    """The connections of one download, which share a deadline.

    Attributes:
      deadline: time at which the download must end, on the monotonic clock.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._public = False  # whether a server at a public address has answered

    def left(self) -> float:
        """Returns the seconds until the deadline; raises a `TimeoutError` after it."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def connect(self, address: tuple[str, int], *, proxy: bool) -> "_Socket":
        """Connects to a host and port, as `socket.create_connection` does; what a proxy reaches counts as public."""
        failure = OSError(f"{address[0]} has no address")
        for family, kind, protocol, _, place in _looked_up(*address, self.left()):
            private = not proxy and _is_private(str(place[0]))
            if private and self._public:
                raise OSError(f"a public server redirects to the private address {place[0]}")
            connection = _Socket(family, kind, protocol)
            connection.route = self
            try:
                connection.settimeout(self.left())
                connection.connect(place)
            except OSError as error:
                connection.close()
                failure = error
                continue
            self._public |= not private
            return connection
        raise failure


class _Socket(socket.socket):
    """A socket whose every wait ends at the deadline of its route."""

    route: _Route

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(self.route.left())
        return super().recv_into(*arguments, **options)

    def sendall(self, *arguments: Any, **options: Any) -> None:
        self.settimeout(self.route.left())
        super().sendall(*arguments, **options)


class _TlsSocket(ssl.SSLSocket):
    """An encrypted socket whose every wait after the handshake ends at the deadline of its route."""

    route: _Route

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(self.route.left())
        return super().recv_into(*arguments, **options)


class _TlsConnection(http.client.HTTPSConnection):
    """A connection that hands its route to the encrypted socket."""

    route: _Route

    def connect(self) -> None:
        super().connect()
        if isinstance(self.sock, _TlsSocket):
            self.sock.route = self.route


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https over the sockets of a route."""

    def __init__(self, route: _Route) -> None:
        super().__init__()
        self._route = route

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._connection, http.client.HTTPConnection, req), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        context = ssl.create_default_context()
        context.sslsocket_class = _TlsSocket
        return self.do_open(functools.partial(self._connection, _TlsConnection, req), req, context=context)

    def _connection(self, kind: Any, request: urllib.request.Request, host: str, **options: Any) -> Any:
        connection = kind(host, **options)
        proxy = request.host != urllib.parse.urlsplit(request.full_url).netloc
        connection.route = self._route
        connection._create_connection = lambda address, *_: self._route.connect(address, proxy=proxy)
        return connection


def _looked_up(host: str, port: int, seconds: float) -> list[Any]:
    """Returns the addresses of a host; in a thread, because a name lookup cannot be interrupted."""
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _is_private(address: str) -> bool:
    """Returns whether an address is of this machine or of a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (getattr(found, "ipv4_mapped", None) or found).is_global
