"""Downloads from servers of this machine: answers of every kind, slow ones, and redirects."""

import http.server
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from siglip_jax.processing import load_image
from siglip_jax.processing.images import download
from tests.support.image_server import ImageServer
from tests.support.images import encoded, noise

PNG = encoded(noise(20, 30), "PNG")
MOST = 1000  # pieces that a slow server sends, one in 20 ms


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ImageServer() as server:
        yield server


class TestUrls:
    def test_picture(self, server):
        np.testing.assert_array_equal(load_image(server.gives("/a.png", PNG)), noise(20, 30))

    def test_redirect(self, server):
        there = server.gives("/a.png", PNG)
        np.testing.assert_array_equal(load_image(server.gives("/b", b"", 302, Location=there)), noise(20, 30))

    @pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1/a.png"])
    def test_redirect_elsewhere_is_not_followed(self, server, place):
        with pytest.raises(ValueError, match=r"^http://127[^\n]*$"):
            load_image(server.gives("/b", b"", 302, Location=place))

    def test_redirect_in_a_circle(self, server):
        with pytest.raises(ValueError, match=r"^http://127[^\n]*/b: the server answered 302"):
            load_image(server.gives("/b", b"", 302, Location="/b"))

    @pytest.mark.parametrize(
        ("status", "kind"), [(404, FileNotFoundError), (410, FileNotFoundError), (500, ValueError)]
    )
    def test_refusals(self, server, status, kind):
        with pytest.raises(kind, match=f"/a.png: the server answered {status}"):
            load_image(server.gives("/a.png", b"no", status))

    def test_no_image(self, server):
        with pytest.raises(ValueError, match=r"/a.png: data must be an image that Pillow can read"):
            load_image(server.gives("/a.png", b"<html>"))

    def test_too_large(self, server):
        with pytest.raises(ValueError, match=r"/a.png: data must have at most 1000 bytes, got at least \d{4,}"):
            load_image(server.gives("/a.png", b"\0" * 100_000), max_bytes=1000)

    def test_broken_off(self, server):
        with pytest.raises(ValueError, match=r"/a.png: (cannot be downloaded|image must be complete)"):
            load_image(server.gives("/a.png", PNG[:100], Content_Length=str(len(PNG))))

    def test_nobody_there(self, server):  # which also keeps proxies out
        with pytest.raises(ValueError, match="cannot be downloaded"):
            load_image("http://127.0.0.1:1/a.png")

    @pytest.mark.parametrize("url", ["ftp://127.0.0.1/a.png", "file:///a.png", "gopher://a"])
    def test_other_schemes(self, url):
        with pytest.raises(ValueError, match="URL must be http or https, got"):
            load_image(url)

    def test_spaces_and_letters_beyond_ascii_in_a_url_are_escaped(self, server):
        server.gives("/a%20b%C3%A9.png?q=%C3%A9", PNG)
        np.testing.assert_array_equal(load_image(f"{server.url}/a bé.png?q=é"), noise(20, 30))

    @pytest.mark.parametrize("url", ["http://[::1", "http://", f"http://{'a' * 300}/a.png", "http://a b/c.png"])
    def test_urls_that_are_none(self, server, url):
        with pytest.raises(ValueError, match=r"^http://[^\n]{0,300}$"):
            load_image(url)


class TestDeadline:
    """The time limit is that of the whole download, however a server spreads what it sends."""

    OPENINGS = {
        "header lines": (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n", 20),
        "one header": (b"HTTP/1.1 200 OK\r\nX-More: ", b"1", 1),
        "a chunk's length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=", b"1", 1),
        "one chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", b"1", 1),
        "continue for ever": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 1),
        "the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"1", 1),
        "nothing": (b"", b"", 1),
    }

    @pytest.mark.parametrize("opening", OPENINGS)
    def test_ends_while_the_server_still_sends(self, server, opening):
        start, piece, patience = self.OPENINGS[opening]
        sent, done = [], threading.Event()

        def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.wfile.write(start)
            while len(sent) < MOST and not done.is_set():
                try:
                    handler.wfile.write(piece)
                except OSError:
                    return
                sent.append(piece)
                time.sleep(0.02 * patience)  # a response may have a hundred headers

        server.answers["/drip"] = drip
        try:
            with pytest.raises(ValueError, match=r"/drip: took longer than 0\.2 seconds; raise timeout"):
                load_image(f"{server.url}/drip", timeout=0.2)
            assert len(sent) < MOST
        finally:
            done.set()

    def test_covers_all_redirects_together(self, server):
        def again(handler: http.server.BaseHTTPRequestHandler) -> None:
            time.sleep(0.1)
            handler.send_response(302)
            handler.send_header("Location", f"/{len(server.asked)}")
            handler.end_headers()

        server.answers |= {f"/{i}": again for i in range(20)}
        with pytest.raises(ValueError, match=r"/0: took longer than 0\.25 seconds"):
            load_image(f"{server.url}/0", timeout=0.25)
        assert len(server.asked) < 9  # urllib follows ten

    def test_covers_the_lookup_of_the_name(self, server, monkeypatch):
        done = threading.Event()
        monkeypatch.setattr(download.socket, "getaddrinfo", lambda *_, **__: done.wait(60))
        try:
            with pytest.raises(ValueError, match=r"took longer than 0\.2 seconds"):
                load_image("http://slow.example/a.png", timeout=0.2)
        finally:
            done.set()

    def test_covers_encrypted_connections(self, server, tmp_path, monkeypatch):
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl to make a certificate")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        url = server.url.replace("http", "https")
        server.gives("/a.png", PNG)
        np.testing.assert_array_equal(load_image(f"{url}/a.png"), noise(20, 30))
        done = threading.Event()
        sent = []

        def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-More: ")
            while len(sent) < MOST and not done.is_set():
                try:
                    handler.wfile.write(b"1")
                except OSError:
                    return
                sent.append(b"1")
                time.sleep(0.02)

        server.answers["/drip"] = drip
        try:
            with pytest.raises(ValueError, match=r"/drip: took longer than 0\.5 seconds"):
                load_image(f"{url}/drip", timeout=0.5)
            assert len(sent) < MOST
        finally:
            done.set()
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ValueError, match=r"/a\.png: cannot be downloaded \([^\n]*certificate verify failed"):
            load_image(f"{url}/a.png")


class TestRedirectsToPrivateAddresses:
    def test_are_refused_after_a_public_server_and_ask_nothing(self, server, monkeypatch):
        monkeypatch.setattr(download, "_is_private", lambda address: address == "127.0.0.2")
        with ImageServer("127.0.0.2") as inside:
            there = inside.gives("/secret.png", PNG)
            with pytest.raises(ValueError, match=r"/b: cannot be downloaded \(a public server redirects to"):
                load_image(server.gives("/b", b"", 302, Location=there))
            assert inside.asked == []
            assert load_image(there).size == (30, 20)  # a private address that the caller names

    def test_are_followed_within_a_private_network(self, server):
        with ImageServer("127.0.0.2") as inside:
            there = inside.gives("/a.png", PNG)
            assert load_image(server.gives("/b", b"", 302, Location=there)).size == (30, 20)

    @pytest.mark.parametrize(
        ("address", "private"),
        [("127.0.0.1", True), ("10.1.2.3", True), ("169.254.169.254", True), ("::1", True), ("fe80::1%eth0", True)]
        + [("::ffff:192.168.0.1", True), ("8.8.8.8", False), ("2606:4700::1111", False), ("::ffff:8.8.8.8", False)],
    )
    def test_which_addresses_are_private(self, address, private):
        assert download._is_private(address) is private
