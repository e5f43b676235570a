"""Structure of the data sets: classes and feature streams."""

from __future__ import annotations

from dataclasses import replace

from avvp_dist.shards.spec import Dataset, Stream

LLP = Dataset(
    name="llp",
    classes=(
        "Speech", "Car", "Cheering", "Dog", "Cat", "Frying_(food)", "Basketball_bounce", "Fire_alarm", "Chainsaw", "Cello",
        "Banjo", "Singing", "Chicken_rooster", "Violin_fiddle", "Vacuum_cleaner", "Baby_laughter", "Accordion",
        "Lawn_mower", "Motorcycle", "Helicopter", "Acoustic_guitar", "Telephone_bell_ringing", "Baby_cry_infant_cry",
        "Blender", "Clapping",
    ),
    streams=(
        Stream("audio", 128, "vggish", 10),
        Stream("visual", 2048, "res152", 80),
        Stream("motion", 512, "r2plus1d_18", 10),
    ),
    segments=10,
    task="parsing",
    tracks=("audio", "visual"),
)  # fmt: skip

LLP_CLIP_CLAP = replace(
    LLP,
    name="llp-clip-clap",
    streams=(
        Stream("audio", 768, "CLAP/features", 64, "clap-map"),
        Stream("visual", 768, "CLIP/features", 10),
        Stream("motion", 512, "r2plus1d_18", 10),
    ),
)
"""The videos of LLP with the features of CLAP and CLIP that VALOR's authors publish (NeurIPS 2023)."""

AVE = Dataset(
    name="ave",
    classes=(
        "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
        "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
        "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
        "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin",
    ),
    streams=(
        Stream("audio", 128, "audio_feature.h5", 10),
        Stream("visual", 7 * 7 * 512, "visual_feature.h5", 10, shape=(7, 7, 512)),
    ),
    segments=10,
    task="localization",
    tracks=("event",),
)  # fmt: skip
"""AVE (ECCV 2018): one audio-visual event per video. Classes are in the order of their first appearance in Annotations.txt,
which is the order of the official labels; segments without the event are background, which is not a class here."""

DATASETS = {LLP.name: LLP, AVE.name: AVE}
FEATURE_SETS = {"vggish-resnet": LLP, "clip-clap": LLP_CLIP_CLAP}
"""The available features of LLP's videos; each becomes a data set of its own when packed."""
