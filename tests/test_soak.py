"""A run on two ranks that is killed again and again ends as the undisturbed one. SSL_ZOO_SOAK_MINUTES=30 makes it long."""

import os
import random
import signal
import time

import pytest

from tests.test_resume import METHODS, WORDS, go_on_two_ranks, ranks_of, same_end

MINUTES = float(os.environ.get("SSL_ZOO_SOAK_MINUTES", 0.5))
ENDS = (0, 1, 143, -signal.SIGKILL, -signal.SIGTERM)  # done; the other rank was lost; stopped; killed; stopped before training


@pytest.mark.slow
def test_random_kills_change_nothing(tmp_path):
    draw = random.Random(0)
    words = [*WORDS, "method=moco", *METHODS["moco"], "batch_size=8", f"epochs={4 + int(4 * MINUTES)}", "checkpoint.every_n_steps=2",
             "trainer.timeout_s=10"]  # fmt: skip
    started = time.monotonic()
    codes, told = go_on_two_ranks(tmp_path, *words, "run=whole", limit=300 + 60 * MINUTES)
    assert codes == [0, 0], told
    longest = min(15, 0.5 * (time.monotonic() - started))  # the first of the kills comes before the end, however fast the machine
    until, kills, codes = time.monotonic() + 60 * MINUTES, 0, [1, 1]
    while codes != [0, 0]:
        ranks = ranks_of(tmp_path, *words, "run=cut", "resume=auto")
        if time.monotonic() < until:
            ranks[0].join(draw.uniform(0.1, 1) * longest)
            number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            for rank in draw.choice(([ranks[0]], [ranks[1]], ranks)):
                if rank.is_alive():
                    os.kill(rank.pid, number)
                    kills += 1
        for rank in ranks:
            rank.join(240 + 60 * MINUTES)
        codes = [rank.exitcode for rank in ranks]
        told = "\n".join((tmp_path / f"{name}{r}").read_text() for r in (0, 1) for name in ("out", "err"))
        assert set(codes) <= set(ENDS), (codes, told)
        assert "Traceback" not in told
    print(f"{kills} kills")
    assert kills
    same_end(tmp_path / "whole", tmp_path / "cut")
