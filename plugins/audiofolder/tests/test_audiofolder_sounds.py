"""Sounds become the right inputs; expected values are worked out by hand, by numpy, or by torchaudio."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from kshot.errors import DataError
from kshot_audiofolder.form import Form
from kshot_audiofolder.sounds import prepare, suffixes
from kshot_audiofolder.waves import fitted, resampled

FORM = Form(16000, 0.2, "start", "repeat", "mfcc", 20, 40, 0.025, 0.01, 0.0, None, "none")
RNG = np.random.default_rng(0)


def tone(hertz: float, rate: int, seconds: float = 0.2, channels: int = 1) -> np.ndarray[Any, Any]:
    t = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * hertz * t)[:, None], channels, 1)


def written(path: Path, samples: Any, rate: int = 16000, **how: Any) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize("f_max", [None, 6000.0])
def test_coefficients_are_torchaudio_s(f_max: float | None) -> None:
    """``torchaudio.transforms.MFCC`` and ``MelSpectrogram`` with the same options give nearly the same numbers."""
    form = attrs.evolve(FORM, f_min=50.0, f_max=f_max, n_mfcc=13)
    wave = torch.from_numpy(RNG.normal(size=form.samples).astype(np.float32))
    wave[: form.samples // 2] *= 1e-3  # parts are more than 60 dB below the loudest, and some more than 80
    wave[: form.samples // 4] *= 1e-3
    options = {"n_fft": 400, "hop_length": 160, "n_mels": 40, "f_min": 50.0, "f_max": f_max}
    reference = torchaudio.transforms.MFCC(16000, 13, melkwargs=options)(wave)
    assert form.shape == (1, *reference.shape)
    assert torch.allclose(form.transform(wave), reference, atol=1e-4)
    mel = torchaudio.transforms.AmplitudeToDB(top_db=80.0)(torchaudio.transforms.MelSpectrogram(16000, **options)(wave))
    found = attrs.evolve(form, features="mel").transform(wave)
    assert torch.allclose(found, mel, atol=1e-4)


def test_a_waveform_is_the_samples_of_the_clip(tmp_path: Path) -> None:
    """They are resampled, averaged over channels and cut as for spectrograms, and neither normalised nor changed."""
    form = attrs.evolve(FORM, features="wave", normalise="clip")
    assert form.shape == (1, form.samples)
    samples = RNG.uniform(-0.5, 0.5, (form.samples + 100, 2)).astype(np.float32)
    found = form.decode(written(tmp_path / "x.wav", samples, form.rate, subtype="FLOAT"))
    assert found.shape == (1, *form.shape)
    assert np.allclose(found[0, 0], samples[: form.samples].mean(1), atol=1e-6)


def test_a_clip_s_normalisation_takes_its_loudness_away() -> None:
    """Log mel values get mean 0 and deviation 1 over the clip, so a clip twice as loud gives the same input."""
    wave = torch.from_numpy(RNG.normal(size=FORM.samples).astype(np.float32)) * 0.1
    mel = attrs.evolve(FORM, features="mel", normalise="clip").transform(wave)
    assert abs(float(mel.mean())) < 1e-5
    assert abs(float(mel.std(correction=0)) - 1) < 1e-5
    for features in ("mel", "mfcc"):
        form = attrs.evolve(FORM, features=features, normalise="clip")
        assert torch.allclose(form.transform(wave), form.transform(wave * 4), atol=1e-3)
    plain = attrs.evolve(FORM, features="mel")
    naive = plain.transform(wave).double()
    naive = (naive - naive.mean()) / naive.std(correction=0)
    assert torch.allclose(mel.double(), naive, atol=1e-4)


def test_a_band_s_normalisation_takes_the_mean_spectrum_away() -> None:
    wave = torch.from_numpy(RNG.normal(size=FORM.samples).astype(np.float32))
    mel = attrs.evolve(FORM, features="mel", normalise="band").transform(wave)
    assert mel.mean(1).abs().max() < 1e-4
    assert (mel.std(1, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("normalise", ["clip", "band", "none"])
def test_silence_is_finite(normalise: Any) -> None:
    """The deviation of silence is 0, and nothing may be divided by it."""
    found = attrs.evolve(FORM, normalise=normalise).transform(torch.zeros(FORM.samples))
    assert bool(found.isfinite().all())
    assert normalise == "none" or float(found.abs().max()) == 0


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_sound_is_resampled(rate: int) -> None:
    """A tone of 440 Hz is the same tone at another rate, except at its ends."""
    wave = torch.from_numpy(tone(440, rate)[:, 0].astype(np.float32))
    found = resampled(wave, rate, 16000, "tone")
    assert len(found) == 3200
    assert np.abs(found.numpy()[200:-200] - tone(440, 16000)[200:-200, 0]).max() < 0.01


def test_channels_are_mixed_to_their_mean() -> None:
    both = np.stack([tone(440, 16000)[:, 0], tone(1000, 16000)[:, 0]], 1)
    assert np.allclose(FORM.of_samples(both, 16000, "x"), FORM.of_samples(both.mean(1), 16000, "x"), atol=1e-3)


def test_a_long_clip_is_cut_and_a_short_one_filled() -> None:
    """The expected samples are written out by hand."""
    wave = torch.arange(10.0)
    assert fitted(wave, 4, "start", "repeat").tolist() == [0, 1, 2, 3]
    assert fitted(wave, 4, "centre", "repeat").tolist() == [3, 4, 5, 6]
    assert fitted(wave, 5, "centre", "zeros").tolist() == [2, 3, 4, 5, 6]
    assert fitted(wave[:3], 7, "centre", "repeat").tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert fitted(wave[:3], 5, "start", "zeros").tolist() == [0, 1, 2, 0, 0]
    assert fitted(wave, 10, "start", "zeros").tolist() == wave.tolist()


@pytest.mark.parametrize("crop", ["start", "centre"])
def test_of_a_long_file_only_what_is_needed_is_read(tmp_path: Path, crop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of cutting the complete file, but an hour of sound would take a gigabyte."""
    samples = RNG.uniform(-0.5, 0.5, 16000)
    path = written(tmp_path / "x.wav", samples, subtype="FLOAT")
    form = attrs.evolve(FORM, crop=crop)
    read: list[int] = []
    whole = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda s, n, **o: (read.append(n), whole(s, n, **o))[1])
    assert np.allclose(form.decode(path), form.of_samples(samples, 16000, "x"), atol=1e-2)
    assert read == [3200]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"])
def test_files_of_many_formats_are_read(tmp_path: Path, suffix: str) -> None:
    """libsndfile reads them; a lossy format gives nearly the same samples."""
    if suffix not in suffixes():
        pytest.skip(f"this libsndfile has no {suffix}")
    samples = tone(440, 16000, 0.5)
    found = FORM.decode(written(tmp_path / f"x{suffix}", samples))
    exact = FORM.of_samples(samples, 16000, "x")
    assert found.shape == exact.shape == (1, *FORM.shape)
    # Where a pure tone has nothing, lossy formats have noise, so the coefficients of its band alone are compared.
    assert np.abs(found[0, 0, 0, 4:-4].argmax() - exact[0, 0, 0, 4:-4].argmax()) <= 20
    assert suffix in (".ogg", ".mp3") or np.abs(found - exact).max() < 30


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got a file that can't be read as a sound"),
        (b"a text file named .wav", r"got a file that can't be read as a sound \(LibsndfileError"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "got a file that can't be read as a sound"),
    ],
)
def test_a_file_that_is_no_sound_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    """The files are empty, contain text, or have only a beginning."""
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.wav: {message}"):
        FORM.decode(path)


def test_a_file_without_samples_or_with_impossible_ones_is_named(tmp_path: Path) -> None:
    """A recorder may have been stopped at once, and a file of floats may contain NaN."""
    with pytest.raises(DataError, match=r"none\.wav: got samples of shape \[0, 1\], expected"):
        FORM.decode(written(tmp_path / "none.wav", np.zeros(0)))
    samples = tone(440, 16000)
    samples[7] = np.nan
    with pytest.raises(DataError, match=r"nan\.wav: got samples that are not finite"):
        FORM.decode(written(tmp_path / "nan.wav", samples, subtype="FLOAT"))


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    """The decoder of FLAC notices that samples are missing."""
    path = written(tmp_path / "x.flac", RNG.uniform(-0.5, 0.5, 16000))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match=r"x\.flac: got (a file that can't be read as a sound|\d+ samples)"):
        attrs.evolve(FORM, seconds=1.0).decode(path)


def test_a_wav_that_was_cut_off_is_named_and_a_stream_is_not(tmp_path: Path) -> None:
    """The header states the length; a program that writes a stream states that it did not know the length."""
    path = written(tmp_path / "x.wav", RNG.uniform(-0.5, 0.5, 16000))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9000])
    with pytest.raises(DataError, match=r"x\.wav: got 23000 bytes of samples, expected 32000: it was cut off"):
        FORM.decode(path)
    where = whole.index(b"data") + 4
    for unknown in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"):
        path.write_bytes(whole[:where] + unknown + whole[where + 4 :])
        assert FORM.decode(path).shape[0] == 1


def test_a_file_that_gives_less_than_it_promises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An MP3 that was cut off behaves so."""
    path = written(tmp_path / "x.wav", RNG.uniform(-0.5, 0.5, 16000))
    whole = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda s, n, **o: whole(s, n, **o)[:1000])
    with pytest.raises(DataError, match=r"x\.wav: got 1000 samples, expected 3200"):
        FORM.decode(path)


def test_rates_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """The kernel for these two rates would have 700 million numbers."""
    path = written(tmp_path / "x.wav", tone(440, 44101), 44101)
    with pytest.raises(
        DataError, match=r"x\.wav: got a sampling rate of 44101 Hz, expected .* large common divisor with rate 16000"
    ):
        FORM.decode(path)
    assert attrs.evolve(FORM, rate=44101).decode(path).shape[1:3] == (1, 20)


def test_suffixes_are_those_that_can_be_decoded() -> None:
    assert {".wav", ".flac", ".ogg", ".aif", ".aiff", ".au"} <= suffixes()
    assert not {".raw", ".txt", ".m4a"} & suffixes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate: got 0, expected more than 0"), ({"seconds": float("nan")}, "seconds: got nan"),
        ({"seconds": float("inf")}, "seconds: got inf"), ({"hop": -1.0}, "hop: got -1.0"),
        ({"n_mfcc": 41}, "n_mfcc: got 41, expected at most n_mels, 40"),
        ({"seconds": 0.01}, "seconds=0.01, window=0.025 .* 160, 400 and 160 samples, .* more seconds than half"),
        ({"hop": 1e-6}, "hop=1e-06, .* and 0 samples, expected a hop of at least 1"),
        ({"f_max": 9000.0}, "f_max 9000.0, expected 0 <= f_min < f_max <= half the rate, 8000.0"),
        ({"f_min": 500.0, "f_max": 400.0}, "got f_min 500.0 and f_max 400.0"), ({"f_min": -1.0}, "got f_min -1.0"),
        ({"n_mels": 300}, "got 300 mel bands, .* expected fewer for a window of 400 samples"),
        ({"crop": "end"}, "crop: got 'end', expected one of start, centre"), ({"pad": "edge"}, "pad: got 'edge'"),
        ({"features": "waves"}, "features: got 'waves'"), ({"normalise": "all"}, "normalise: got 'all'"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"audiofolder: .*{message}"):
        attrs.evolve(FORM, **options)


def test_other_options_have_another_name() -> None:
    """The cache would otherwise return a table with other features."""
    changes: list[dict[str, Any]] = [
        {}, {"rate": 8000}, {"seconds": 0.3}, {"crop": "centre"}, {"pad": "zeros"}, {"features": "mel"},
        {"features": "wave"}, {"n_mfcc": 19}, {"n_mels": 39}, {"window": 0.03}, {"hop": 0.02}, {"f_min": 1.0},
        {"f_max": 7000.0}, {"normalise": "clip"},
    ]  # fmt: skip
    assert len({attrs.evolve(FORM, **change).name for change in changes}) == len(attrs.fields(Form)) + 2


def test_own_sounds_are_prepared_as_the_folder_s_are(tmp_path: Path) -> None:
    """A path, samples with their rate, and a list of these all give the same inputs."""
    samples = tone(440, 8000, 0.3, 2)
    path = written(tmp_path / "x.wav", samples, 8000, subtype="FLOAT")
    expected = torch.from_numpy(FORM.decode(path))
    for given in (path, str(path), soundfile.read(path), (samples[:, 0], 8000), (torch.from_numpy(samples), 8000)):
        assert torch.allclose(prepare(given, FORM), expected, atol=1e-3)
    assert prepare([path, (samples, 8000)], FORM).shape == (2, *FORM.shape)
    assert prepare((path, path), FORM).shape == (2, *FORM.shape)
    assert torch.equal(prepare(expected, FORM), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(3200), r"got float64 of shape \[3200\] to prepare, .* samples with their rate"),
        (np.full((1, *FORM.shape), np.nan), "inputs to prepare: got 420 of 420 values that are NaN"),
        ((np.zeros((2, 2, 2)), 16000), r"samples of shape \[2, 2, 2\]"),
        ((np.zeros(0), 16000), r"samples of shape \[0\]"),
        ((np.zeros(9), 0), "got a sampling rate of 0 Hz"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        ("no-such-file.wav", r"no-such-file\.wav: got a file that can't be read as a sound"),
    ],
)
def test_inputs_of_another_form_are_refused(given: Any, message: str) -> None:
    """They are refused before a learner receives them."""
    with pytest.raises(DataError, match=message):
        prepare(given, FORM)


def put(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    """Return a file's bytes with a value written some bytes after a marker."""
    where = data.index(marker) + offset
    return data[:where] + value + data[where + len(value) :]


@pytest.mark.parametrize("crop", ["start", "centre"])
@pytest.mark.parametrize("seconds", [0.25, 1.0])
@pytest.mark.parametrize(
    ("form", "marker", "offset", "value"),
    [
        ("FLAC", b"fLaC", 21, b"\x00" * 5 + b"\x00" * 16),  # 36 bits of the length, and the checksum
        ("WAV", b"data", 4, bytes(4)),
        ("WAV", b"data", 4, b"\xff" * 4),
        ("RF64", b"ds64", 16, bytes(8)),
        ("AIFF", b"SSND", 4, bytes(4)),
        ("AIFF", b"SSND", 4, b"\x00\x00\x00\x08"),
        ("AU", b".snd", 8, bytes(4)),
        ("AU", b".snd", 8, b"\xff" * 4),
        ("CAF", b"data", 4, b"\xff" * 8),
    ],
)
def test_a_file_that_does_not_say_how_long_it_is_is_read_to_its_end(
    tmp_path: Path, crop: Any, seconds: float, form: str, marker: bytes, offset: int, value: bytes
) -> None:
    """Encoders that write to a pipe can't go back to the header: its length stays 0 or unknown."""
    path = tmp_path / f"x.{form.lower()}"
    soundfile.write(path, RNG.uniform(-0.5, 0.5, 8000), 16000, format=form, subtype="PCM_16")
    wanted = attrs.evolve(FORM, seconds=seconds, crop=crop, pad="zeros")
    expected = wanted.decode(path)
    data = path.read_bytes()
    if form == "FLAC":
        value = bytes([data[21] & 0xF0]) + value[1:]
    path.write_bytes(put(data, marker, offset, value))
    assert np.array_equal(wanted.decode(path), expected)
    assert np.array_equal(wanted.decode(io.BytesIO(path.read_bytes()), "x"), expected)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "AIFF", "AU", "W64", "RF64", "CAF", "FLAC"])
def test_a_file_of_any_format_that_was_cut_off_is_named(tmp_path: Path, form: str) -> None:
    """Its header promises more than there is, even if the wanted clip is complete."""
    path = tmp_path / f"x.{form.lower()}"
    soundfile.write(path, RNG.uniform(-0.5, 0.5, 16000), 16000, format=form, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-12000])
    with pytest.raises(DataError, match=r"x\.\w+: got .* expected"):
        attrs.evolve(FORM, seconds=1.0).decode(path)


@pytest.mark.parametrize(("subtype", "largest"), [("FLOAT", 1e30), ("DOUBLE", 1e300)])
def test_samples_whose_features_are_not_finite_are_refused(tmp_path: Path, subtype: str, largest: float) -> None:
    """Their squares are too large for a float, so a learner would meet NaN."""
    soundfile.write(tmp_path / "x.wav", largest * tone(440, 16000), 16000, subtype=subtype)
    with pytest.raises(DataError, match=r"x\.wav: got samples .*not finite"):
        FORM.decode(tmp_path / "x.wav")


def test_samples_in_the_layout_of_torchaudio_are_taken_or_refused() -> None:
    """[1, n] is one channel; [2, n] may be two channels or two sounds, and was averaged over time."""
    wave = tone(440, 16000)[:, 0]
    expected = prepare((wave, 16000), FORM)
    assert torch.equal(prepare((torch.from_numpy(wave)[None], 16000), FORM), expected)
    with pytest.raises(DataError, match=r"got shape \[2, \d+\], expected \[n\] or \[n, channels\].*samples\.T"):
        prepare((np.stack([wave, wave]), 16000), FORM)


@pytest.mark.parametrize(("dtype", "scale"), [("int16", 2**15), (">i2", 2**15), ("int32", 2**31)])
def test_whole_numbers_are_samples_of_their_type(dtype: str, scale: int) -> None:
    """scipy.io.wavfile returns them; without the scale, a spectrogram in decibels is another."""
    form = attrs.evolve(FORM, features="mel", normalise="none")
    wave = np.round(0.5 * tone(440, 16000) * 2**15) / 2**15
    expected = prepare((wave, 16000), form)
    assert torch.allclose(prepare(((wave * scale).astype(dtype), 16000), form), expected, atol=1e-4)
    with pytest.raises(DataError, match="got int64, of which the greatest sample is not known"):
        prepare(((wave * scale).astype(np.int64), 16000), form)


def test_unsigned_bytes_have_their_zero_at_128() -> None:
    """A WAV of 8 bits has such samples."""
    form = attrs.evolve(FORM, features="mel", normalise="none")
    wave = np.round(0.5 * tone(440, 16000) * 128) / 128
    samples = (128 + 128 * wave).astype(np.uint8)
    assert torch.allclose(prepare((samples, 16000), form), prepare((wave, 16000), form), atol=1e-4)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Opening it waits for somebody who writes."""
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(DataError, match=r"x\.wav: got a named pipe, expected a sound"):
        prepare(tmp_path / "x.wav", FORM)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
@pytest.mark.parametrize("crop", ["start", "centre"])
def test_a_file_whose_decoder_can_not_seek_is_read(tmp_path: Path, subtype: str, crop: str) -> None:
    """Telephones and dictating machines write such files."""
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.5 * np.sin(np.arange(4000) * np.arange(4000) / 9000), 8000, subtype)
    samples, rate = soundfile.read(path, dtype="float32")
    form = Form(8000, 0.2, crop, "repeat", "mel", 5, 10, 0.025, 0.01, 0.0, None, "clip")
    np.testing.assert_allclose(form.decode(path), form.of_samples(samples, rate, "plain"), atol=1e-4)
