"""Public checkpoints and their preference data, by a short name. Nothing is fetched until they are opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Hub ids of M0 (after SFT), M1 (after DPO) and the pairs between them; layer: where to begin."""

    name: str
    m0: str
    m1: str
    pairs: str
    layer: int


# Not tried where probekit is tested, which has no hub. Layer: Xiao & Aranguri (2602.11079) read "layer 20" of
# the 7B, block 19 of 32 here; the 1B has 16 blocks, and 9 is the same share of the way.
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "olmo2-1b",
            "allenai/OLMo-2-0425-1B-SFT",
            "allenai/OLMo-2-0425-1B-DPO",
            "allenai/olmo-2-0425-1b-preference-mix",
            9,
        ),
        Preset(
            "olmo2-7b",
            "allenai/OLMo-2-1124-7B-SFT",
            "allenai/OLMo-2-1124-7B-DPO",
            "allenai/olmo-2-1124-7b-preference-mix",
            19,
        ),
    )
}
