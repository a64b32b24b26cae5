"""What ssl_zoo asks of a backbone."""

import torch
from convmixer import ConvMixer


def test_features_are_a_vector_for_each_image_of_any_size():
    net = ConvMixer(image_size=32, width=24, depth=2)
    for size in (32, 16):  # local views are smaller
        features = net(torch.rand(2, 3, size, size))
        assert features.shape == (2, net.num_features)
        features.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
