"""The benchmark of several workers, tiny: each side is what its name says."""

import pytest

pytestmark = pytest.mark.slow


def test_two_workers_train_on_twice_the_images_and_send_the_gradient(script):
    workers = script("workers")
    settings = workers.Flags(turns=1, each=5, steps=2, epochs=2)
    one, two = (workers._run(settings, "head", count) for count in (1, 2))
    # The head: 512 channels to 10 classes, and a bias for each, of 4 bytes.
    assert one["gradient, MB"] == two["gradient, MB"] == (512 * 10 + 10) * 4 / 1e6
    assert one["images a second"] * one["seconds a step"] == pytest.approx(5)
    assert two["images a second"] * two["seconds a step"] == pytest.approx(10)
    assert one["all-reduce, s"] == 0 < two["all-reduce, s"]
    apart = workers._run_apart(settings, "head")
    assert apart["images a second"] > 0


def test_a_ring_sends_each_byte_nearly_twice(script):
    ring = script("workers").ring
    assert ring(1e9, 2, 1e9) == 1
    assert ring(1e9, 64, 1e9) == pytest.approx(2, rel=0.02)


def test_a_paced_network_leaves_the_share_that_is_not_spent_on_sending(script):
    workers = script("workers")
    outcomes = {
        f"{trained}, 1 worker": [{"seconds a step": 1.75, "gradient, MB": 1250.0}]
        for trained in workers.TRAINED
    }
    *_, row = workers.estimate(outcomes).splitlines()
    # 8 workers send 1.75 times 1.25 GB at 1.25 GB/s: 1.75 s, as long as a step.
    assert row.split("MB")[1].split()[0] == "50.0%"
