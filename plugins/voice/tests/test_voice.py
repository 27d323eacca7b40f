"""Embeddings are those of Resemblyzer, whose numbers are in this file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio.functional
from torch import Tensor

import kshot
import kshot_voice.encoder
from kshot.errors import DataError
from kshot_voice import VoiceEncoder
from kshot_voice.encoder import parts_of
from kshot_voice.mel import mel_filters


def spec(*shape: int) -> kshot.TaskSpec:
    return kshot.TaskSpec(kind="classification", input_shape=shape, way=2, shot=1, query=1)


def sweep(samples: int) -> Tensor:
    """Two tones that rise."""
    t = torch.arange(samples, dtype=torch.float64) / 16000
    wave = 0.02 * torch.sin(2 * math.pi * (150 + 60 * t) * t) + 0.01 * torch.sin(2 * math.pi * 900 * t * t)
    return wave.float()


@pytest.mark.parametrize(
    ("samples", "greatest"),
    [
        (16000, {9: 0.31785, 224: 0.2387, 225: 0.23864, 25: 0.23543, 58: 0.19133}),
        (48000, {9: 0.23416, 191: 0.22578, 133: 0.21469, 124: 0.18882, 224: 0.18013}),
        (36000, {9: 0.2869, 133: 0.23041, 224: 0.2098, 191: 0.20733, 124: 0.19563}),
    ],
    ids=["one part", "three parts", "last part left out"],
)
def test_embeddings_are_those_of_resemblyzer(samples: int, greatest: dict[int, float]) -> None:
    """The five greatest numbers that ``embed_utterance(normalize_volume(wave))`` of version 0.1.4 gives."""
    with torch.no_grad():
        z = VoiceEncoder(spec(1, samples))(sweep(samples).expand(2, 1, -1))
    assert torch.equal(z[0], z[1])
    assert float(z[0].norm()) == pytest.approx(1, abs=1e-5)
    assert z[0].argsort(descending=True)[:5].tolist() == list(greatest)
    for place, value in greatest.items():
        assert float(z[0, place]) == pytest.approx(value, abs=2e-4)


def test_filters_are_torchaudio_s() -> None:
    """Triangles of equal area on Slaney's scale, as librosa has them by default."""
    expected = torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 40, 16000, norm="slaney", mel_scale="slaney").T
    assert torch.allclose(mel_filters(400, 16000, 40), expected, atol=1e-6)


def test_spectrogram_has_the_power_of_a_tone() -> None:
    """By hand: a tone of 1,000 Hz and amplitude 1 lies in the bands around 15 mel, in every frame but those at the
    ends; the power of a frame is (window sum / 2)^2 at its frequency.
    """
    t = torch.arange(16000) / 16000
    encoder = VoiceEncoder(spec(16000))
    mel = encoder.mel(torch.sin(2 * math.pi * 1000 * t)[None])[0, 10:-10]
    peak = (encoder.window.sum() / 2) ** 2
    for frame in (0, 40):
        lies = encoder.filters[:, 25] * peak  # the window of 400 samples has 1,000 Hz at its 25th frequency
        beside = (encoder.filters[:, 24] + encoder.filters[:, 26]) * peak / 4  # a Hann window leaks half the amplitude
        assert torch.allclose(mel[frame], lies + beside, rtol=1e-3, atol=1e-2)


def test_parts_of_a_clip() -> None:
    """Parts begin every 77 frames; one that is covered by less than three quarters is left out."""
    assert parts_of(16000) == ([0], 25600)
    assert parts_of(48000) == ([0, 77, 154], 50240)
    assert parts_of(36000) == ([0, 77], 37920)
    assert parts_of(25600) == ([0], 25600)


def test_quiet_clips_are_amplified_and_loud_ones_are_not() -> None:
    """Loudness depends on the microphone; silence has an embedding too."""
    encoder = VoiceEncoder(spec(16000))
    wave = sweep(16000)[None]
    with torch.no_grad():
        assert torch.allclose(encoder(wave), encoder(wave / 10), atol=1e-4)
        loud = 0.3 * wave / wave.abs().max()
        assert not torch.allclose(encoder(loud), encoder(2 * loud), atol=1e-3)
        assert torch.isfinite(encoder(torch.zeros(1, 16000))).all()


@pytest.mark.parametrize("shape", [(1, 20, 101), (2, 16000), (1, 1599), (3, 84, 84)])
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected waveforms \[samples\] or \[1, samples\] .*features=wave"):
        VoiceEncoder(spec(*shape))


def test_a_damaged_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kshot_voice.encoder, "DIGEST", "0" * 64)
    with pytest.raises(DataError, match=r"got weights with the SHA-256 6ab7\w+, expected 0{64}: install kshot-voice"):
        VoiceEncoder(spec(16000))


def test_the_licence_of_the_weights_is_in_the_package() -> None:
    """It has to be passed on with them."""
    text = Path(kshot_voice.__file__).with_name("LICENSE.resemblyzer").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Resemble.AI" in text


def test_embeddings_do_not_depend_on_the_number_of_clips() -> None:
    waves = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (3, 1, 30000)).astype(np.float32))
    encoder = VoiceEncoder(spec(1, 30000))
    with torch.no_grad():
        assert torch.allclose(encoder(waves)[1:2], encoder(waves[1:2]), atol=1e-5)
