"""Keys and signatures: who may sign, what a signature is good for, and what no message shows."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from datetime import date

import pytest
from mutated_artifacts import ATTACKS, Subjects, bundles, in_files, in_memory, replaced_meanwhile

from piecewise_core.errors import ConfigError, SignatureRefused
from piecewise_core.store.keys import Keys, new_key, read_keys
from piecewise_core.store.signing import Signer, signer_of

ALGORITHMS = ("hmac-sha256", "ed25519")


@pytest.fixture(params=ALGORITHMS)
def algorithm(request):
    if request.param == "ed25519":
        pytest.importorskip("cryptography")
    return request.param


def keys_of(*keys):
    return Keys({key.id: key for key in keys}, keys[-1].id)


@pytest.fixture
def write(tmp_path):
    def write(data, mode=0o600, name="keys.json"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else data.text())
        path.chmod(mode)
        return str(path)

    return write


def test_a_signature_holds_for_what_was_signed_and_nothing_else(algorithm):
    signer = Signer(keys_of(new_key("a", algorithm, None, 0)))
    made = signer.sign("entry", "k", 1, b"text")
    assert signer.check("entry", "k", 1, b"text", made) == "a"
    for other in (
        ("bundle", "k", 1, b"text"),
        ("entry", "l", 1, b"text"),
        ("entry", "k", 2, b"text"),
        ("entry", "k", 1, b"text."),
        ("entry", "k\n1", 1, b"text"),
    ):
        with pytest.raises(SignatureRefused, match="does not hold"):
            signer.check(*other, made)


def test_the_header_never_chooses_the_algorithm():
    pytest.importorskip("cryptography")
    pair = new_key("a", "ed25519", None, 0)
    as_secret = replace(pair, algorithm="hmac-sha256", parts={"secret": pair.parts["public"]})
    made = Signer(keys_of(as_secret)).sign("entry", "k", 1, b"text")
    with pytest.raises(SignatureRefused, match="not of ed25519") as caught:
        Signer(keys_of(pair)).check("entry", "k", 1, b"text", made)
    assert caught.value.kind == "forged"


def test_several_keys_are_trusted_and_one_signs(algorithm):
    old, new = (new_key(name, algorithm, None, 0) for name in ("old", "new"))
    made = Signer(keys_of(old)).sign("entry", "k", 1, b"text")
    both = Signer(keys_of(old, new))
    assert both.check("entry", "k", 1, b"text", made) == "old"
    assert both.check("entry", "k", 1, b"text", both.sign("entry", "k", 1, b"text")) == "new"
    with pytest.raises(SignatureRefused, match="old, which is not among") as caught:
        Signer(keys_of(new)).check("entry", "k", 1, b"text", made)
    assert caught.value.kind == "untrusted"


def test_a_key_holds_through_its_last_day_and_no_longer(algorithm):
    key = replace(new_key("a", algorithm, None, 0), expires=date(1970, 1, 2))
    times = [0.0]
    signer = Signer(keys_of(key), now=lambda: times[0])
    made = signer.sign("entry", "k", 1, b"text")
    times[0] = 2 * 86400 - 1
    assert signer.check("entry", "k", 1, b"text", made) == "a"
    times[0] += 1
    assert not signer.can_sign
    with pytest.raises(SignatureRefused, match="expired on 1970-01-02"):
        signer.check("entry", "k", 1, b"text", made)
    with pytest.raises(ConfigError, match="expired"):
        signer.sign("entry", "k", 1, b"text")


def test_a_key_with_its_public_part_alone_verifies_and_does_not_sign(write):
    pytest.importorskip("cryptography")
    key = new_key("a", "ed25519", 3, 0)
    made = Signer(keys_of(key), now=lambda: 0).sign("entry", "k", 1, b"text")
    public = read_keys(write(Keys({"a": key.public()}, ""), 0o644), {})
    assert public.known["a"].expires == key.expires
    signer = Signer(public, now=lambda: 0)
    assert signer.check("entry", "k", 1, b"text", made) == "a"
    assert not signer.can_sign
    with pytest.raises(ConfigError, match="no key that signs"):
        signer.sign("entry", "k", 1, b"text")


def test_keys_go_to_a_file_and_back_and_are_never_shown(write, algorithm):
    keys = keys_of(new_key("a", algorithm, None, 0), new_key("b", "hmac-sha256", 9, 0))
    found = read_keys(write(keys), {})
    assert found == keys
    secrets = [part.hex() for key in keys.known.values() for part in key.parts.values()]
    assert not any(part in repr(found) + repr(Signer(found)) for part in secrets)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o622, 0o602, 0o660])
def test_a_file_of_secrets_that_others_can_open_is_refused_by_name(write, mode):
    path = write(keys_of(new_key("a", "hmac-sha256", None, 0)), mode)
    if mode == 0o640 and os.geteuid() == 0:
        assert read_keys(path, {}).signs == "a"  # root's own, for a group: as secrets are mounted
        return
    with pytest.raises(ConfigError, match=f"{path} has mode {mode:04o}.*chmod 600"):
        read_keys(path, {})


def test_a_file_of_another_user_is_refused(write, only_root):
    path = write(keys_of(new_key("a", "hmac-sha256", None, 0)))
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        read_keys(path, {})


def test_what_is_no_file_of_keys_is_refused_and_shows_nothing_of_it(write, tmp_path):
    good = json.loads(keys_of(new_key("a", "hmac-sha256", None, 0)).text())
    secret = good["keys"]["a"]["secret"]
    bad = [
        {**good, "signs": "b"},
        {**good, "more": 1},
        {"keys": good["keys"]},
        {"signs": "", "keys": [secret]},
        {"signs": "", "keys": {"a": {"algorithm": "md5", "secret": secret}}},
        {"signs": "", "keys": {"a": {"algorithm": "hmac-sha256", "secret": secret[:-2]}}},
        {"signs": "", "keys": {"a": {"algorithm": "hmac-sha256", "secret": secret, "x": 1}}},
        {"signs": "", "keys": {"a": {"algorithm": "ed25519", "secret": secret}}},
        {"signs": "", "keys": {"a b": {"algorithm": "hmac-sha256", "secret": secret}}},
        {
            "signs": "",
            "keys": {"a": {"algorithm": "hmac-sha256", "secret": secret, "expires": secret}},
        },
        {"signs": "a", "keys": {"a": {"algorithm": "ed25519", "public": secret}}},
    ]
    texts = [*map(json.dumps, bad), f'{{"keys": "{secret}"', "[" * 100_000, secret]
    for text in texts:
        with pytest.raises(ConfigError, match="is no file of keys") as caught:
            read_keys(write(text), {})
        assert secret not in str(caught.value)
    for missing in (f"/nowhere/{secret}", secret, str(tmp_path)):
        with pytest.raises(ConfigError, match="names no file that can be read") as caught:
            read_keys(missing, {"XDG_CONFIG_HOME": "/nowhere"})
        assert secret not in str(caught.value)


def test_an_id_chooses_a_key_of_the_users_own_file(tmp_path, write):
    (tmp_path / "piecewise").mkdir()
    keys = keys_of(*(new_key(name, "hmac-sha256", None, 0) for name in ("a", "b")))
    write(keys, name="piecewise/keys.json")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert read_keys("a", environ).signs == "a"
    assert {*read_keys("a", environ).known} == {"a", "b"}
    with pytest.raises(ConfigError, match="has no key of that id"):
        read_keys("c", environ)


def test_signed_without_keys_is_refused_with_what_to_do():
    assert signer_of("own", None) is None
    with pytest.raises(ConfigError, match=r"needs sign_key.*keygen"):
        signer_of("signed", None)


@pytest.mark.parametrize("edwards", [False, True])
def test_mutated_artifacts_are_never_read(tmp_path, edwards, caplog):
    if edwards:
        pytest.importorskip("cryptography")
    caplog.set_level("CRITICAL")
    subjects = Subjects(random.Random(1), edwards)
    assert in_memory(subjects, 2000, lambda done: None) == dict.fromkeys(ATTACKS, 0)
    assert in_files(subjects, 100, tmp_path / "store") == 0
    assert replaced_meanwhile(subjects, 100, tmp_path / "race")[0] == 0
    assert bundles(subjects, 200, tmp_path) == 0
