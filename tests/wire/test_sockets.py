"""TCP, unix sockets and TLS."""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.wire import ClosedEarly, ConnectFailed, Pool
from tests.wire.peer import HEADERS, OK, answering, get, once


async def test_small_packets_are_not_delayed(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url)
    await get(pool)
    (connection,) = pool._open
    peer_socket = connection._transport.get_extra_info("socket")
    assert peer_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_unix_socket(serve: Any, connect: Any, tmp_path: Path) -> None:
    peer = await serve(answering(OK), path=str(tmp_path / "engine.sock"))
    pool = connect(peer.url)
    assert await get(pool, method="POST", body=b"{}") == (200, b"ok")
    assert await get(pool) == (200, b"ok")
    assert (pool.opened, pool.idle) == (1, 1)
    assert b"host: localhost\r\n" in peer.sides[0].requests[0][0]
    with pytest.raises(ConnectFailed):
        await get(connect(f"unix://{tmp_path}/nobody.sock"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of `localhost`, signed by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_tls_with_a_trusted_certificate(
    serve: Any, connect: Any, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    peer = await serve(answering(OK), tls=tls)
    pool = connect(peer.url)
    assert await get(pool) == (200, b"ok")
    assert await get(pool, method="POST", body=b"x" * 1_000_000) == (200, b"ok")
    assert len(peer.sides[0].requests[1][1]) == 1_000_000
    assert (pool.opened, pool.idle) == (1, 1)
    (connection,) = pool._open
    assert connection._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_tls_closed_in_the_body(
    serve: Any, connect: Any, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    peer = await serve(once(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc"), tls=tls)
    answer = await connect(peer.url).request("GET", b"/", HEADERS, first_byte_s=5)
    with pytest.raises(ClosedEarly):
        await answer.read(10, 5)


async def test_tls_with_an_unknown_certificate_is_refused(serve: Any, connect: Any, tls: ssl.SSLContext) -> None:
    peer = await serve(answering(OK), tls=tls)
    pool = connect(peer.url)
    with pytest.raises(ConnectFailed, match=r"(?i)certificate"):
        await get(pool)
    assert pool.busy == 0


@pytest.mark.parametrize(
    "url", ["", "engine:8000", "ftp://engine", "http://", "http://engine/v1", "unix://", "http://engine:70000"]
)
async def test_what_is_no_engine_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pool(url)
