"""Two processes on two files come to one cart, and the conflicts are listed."""

from __future__ import annotations

from pathlib import Path

from .conftest import Run


def test_two_devices_differ_meet_and_agree(run_example: Run, tmp_path: Path) -> None:
    done = run_example("offline_cart.py", tmp_path / "carts")

    assert (done.returncode, done.stderr) == (0, "")
    shown = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("laptop,", "phone,")))
    assert shown["laptop, alone"] == "{'book': 1}"
    assert shown["phone, alone"] == "{'book': 2, 'pen': 1}"
    carts = [eval(shown[f"{device}, together"]) for device in ("laptop", "phone")]
    together = {"book": 3, "pen": 1, "sticker from the laptop": 1, "sticker from the phone": 1}
    assert carts == [together, together]
    conflicts = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("Cart-ann")]
    assert {(origin, type_) for _, _, origin, type_, *_ in conflicts} >= {
        ("laptop", "CartOrdered"),
        ("phone", "CartOrdered"),
    }
