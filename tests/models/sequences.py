"""Recurrent networks, and others over time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.architecture import (
    FIXED,
    FREE,
    SCRIPT,
    Architecture,
    Input,
    constant,
    images,
    normal,
    series,
    tokens,
    waves,
)  # fmt: skip
from models.blocks import conv

TIME = {1: "time"}


class Crnn(nn.Module):
    """A recogniser of lines of text: convolutions, a BiLSTM over the columns, CTC's scores [time, batch, letters]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 8), nn.MaxPool2d(2), conv(8, 16), nn.MaxPool2d(2), conv(16, 16), nn.MaxPool2d((4, 1))
        )
        self.rnn, self.last = nn.LSTM(16, 12, bidirectional=True), nn.Linear(24, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).squeeze(2).permute(2, 0, 1)
        return self.last(self.rnn(y)[0]).log_softmax(2)


class Forecast(nn.Module):
    """A forecast of several steps from the last state of two LSTMs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.LSTM(6, 16, 2, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(x)[0][:, -1])


class Sentiment(nn.Module):
    """Words, a GRU in both directions, and attention over its states."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(50, 12), nn.GRU(12, 10, bidirectional=True, batch_first=True)
        self.score, self.last = nn.Linear(20, 1), nn.Linear(20, 3)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.rnn(self.words(words))
        weights = torch.tanh(self.score(states)).softmax(1)
        return self.last((weights * states).sum(1))


class SpeechHybrid(nn.Module):
    """Convolutions over a spectrogram, a GRU, phones of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(20, 24, 5, 2, 2), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 16, 3, 1, 1), nn.ReLU()
        )
        self.rnn, self.norm, self.last = nn.GRU(16, 16, batch_first=True), nn.LayerNorm(16), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))[0]))


class Elman(nn.Module):
    """A plain recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.RNN(6, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(x)
        return self.last(states) + last.transpose(0, 1).mean(-1, keepdim=True)


class VoiceActivity(nn.Module):
    """A voice detector of one chunk, with a rate without a batch and a state [2, batch, width] in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(1, 16, 16, 8), nn.ReLU(), nn.Conv1d(16, 16, 3, 2, 1), nn.ReLU())
        self.rnn, self.last = nn.LSTM(16, 12, 1), nn.Conv1d(12, 1, 1)

    def forward(self, x: Tensor, state: Tensor, sr: Tensor) -> tuple[Tensor, Tensor]:
        y = self.front(x.unsqueeze(1) * (sr.float() / 16000)).permute(2, 0, 1)
        states, (h, c) = self.rnn(y, (state[:1], state[1:]))
        odds = torch.sigmoid(self.last(torch.relu(states.permute(1, 2, 0))))
        return odds.mean(2), torch.cat([h, c])


class Streaming(nn.Module):
    """A GRU of two layers that is given its state [layers, batch, width] and returns it, one frame at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(8, 16), nn.GRU(16, 12, 2), nn.Linear(12, 8)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(torch.relu(self.first(x)).unsqueeze(0), state)
        return torch.sigmoid(self.last(y.squeeze(0))), state


class Temporal(nn.Module):
    """A TCN: dilated causal convolutions with residuals and weight norms folded in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(6 if d == 1 else 12, 12, 3, dilation=d) for d in (1, 2, 4))
        self.short, self.last = nn.Conv1d(6, 12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        for layer in self.layers:
            d = layer.dilation[0]
            inner = torch.relu(layer(nn.functional.pad(y, (2 * d, 0))))
            y = torch.relu(inner + (self.short(y) if d == 1 else y))
        return self.last(y[:, :, -1])


class Translator(nn.Module):
    """Encoder and decoder of GRUs, with attention of each step to all words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.targets = nn.Embedding(40, 12), nn.Embedding(30, 12)
        self.encoder, self.decoder = nn.GRU(12, 16, batch_first=True), nn.GRU(12, 16, batch_first=True)
        self.join, self.last = nn.Linear(32, 16), nn.Linear(16, 30)

    def forward(self, words: Tensor, given: Tensor) -> Tensor:
        memory, state = self.encoder(self.words(words))
        states, _ = self.decoder(self.targets(given), state)
        context = (states @ memory.transpose(1, 2)).softmax(-1) @ memory
        return self.last(torch.tanh(self.join(torch.cat([states, context], -1))))


class EegNet(nn.Module):
    """EEGNet: a convolution over time, a depthwise one over the electrodes, a separable one."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(1, 8, (1, 16), padding="same", bias=False), nn.BatchNorm2d(8)]
        second = [nn.Conv2d(8, 16, (8, 1), groups=8, bias=False), nn.BatchNorm2d(16), nn.ELU(), nn.AvgPool2d((1, 4))]
        third = [nn.Conv2d(16, 16, (1, 8), padding="same", groups=16, bias=False), nn.Conv2d(16, 16, 1, bias=False)]
        rest = [nn.BatchNorm2d(16), nn.ELU(), nn.AvgPool2d((1, 4)), nn.Flatten(), nn.Linear(64, 4)]
        self.body = nn.Sequential(*first, *second, *third, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.unsqueeze(1))


class Tagger(nn.Module):
    """Tags of words from their letters: a convolution and a maximum within each word, an LSTM over the words."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.conv = nn.Embedding(30, 8), nn.Conv1d(8, 12, 3, padding=1)
        self.rnn, self.last = nn.LSTM(12, 10, bidirectional=True, batch_first=True), nn.Linear(20, 5)

    def forward(self, letters: Tensor) -> Tensor:
        b, words, length = letters.shape
        y = self.conv(self.letters(letters.reshape(b * words, length)).transpose(1, 2)).amax(-1)
        return self.last(self.rnn(y.reshape(b, words, -1))[0])


def letters(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw words of letters, [n, words, letters]."""
    return tokens(48, 30)(rng, n).reshape(n, 8, 6)


def states(layers: int, width: int) -> Input:
    """States [layers, batch, width]."""
    return Input(lambda rng, n: (rng.normal(size=(layers, n, width)) * 0.5).astype(np.float32), axis=1)


LINE = {"x": Input(images(1, 16, 48), free={3: "width"})}
WORDS = Input(tokens(9, 40), free={1: "words"})
GIVEN = Input(tokens(7, 30), free={1: "given"})
VOICE = {"x": Input(waves(256)), "state": states(2, 12), "sr": Input(constant(16000, np.int64), axis=None)}
ARCHITECTURES = [
    Architecture("crnn_ctc", Crnn, LINE, out_axes={"y": 1}, lengths=(SCRIPT,)),
    Architecture("forecast_lstm", Forecast, {"x": Input(series(12, 6), free=TIME)}, lengths=(SCRIPT,)),
    Architecture("sentiment_gru", Sentiment, {"words": Input(tokens(10, 50), free=TIME)}, lengths=(SCRIPT,)),
    Architecture("speech_gru", SpeechHybrid, {"x": Input(series(24, 20), free=TIME)}, lengths=(SCRIPT,)),
    Architecture("elman", Elman, {"x": Input(series(10, 6))}, exporters=(SCRIPT,)),
    Architecture("voice_activity", VoiceActivity, VOICE, ("odds", "next"), out_axes={"next": 1}),
    Architecture(
        "streaming_gru", Streaming, {"x": Input(normal(8)), "state": states(2, 12)}, ("y", "next"), out_axes={"next": 1}
    ),
    Architecture("tcn", Temporal, {"x": Input(series(16, 6), free=TIME)}),
    Architecture("translator", Translator, {"words": WORDS, "given": GIVEN}, lengths=(SCRIPT,)),
    Architecture("eegnet", EegNet, {"x": Input(waves(8, 64))}),
    Architecture(
        "tagger", Tagger, {"letters": Input(letters, free={1: "words"})}, batches=(FREE, FIXED), lengths=(SCRIPT,)
    ),
]
