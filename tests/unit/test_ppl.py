"""PPL: pseudo-labels and losses against plain formulas, and the teacher against its recursion."""

import math

import pytest
import torch
import torch.nn.functional as F
from network_outputs import outputs_of
from torch import nn

from avvp_dist.dist.collective import LocalCollective
from avvp_dist.methods.ppl import PplMethodConfig, hard_labels, weak_by_segment
from avvp_dist.train.teacher import Teacher
from avvp_dist.types import Batch, Refined, TrainPosition

VIDEOS, SEGMENTS, CLASSES, WIDTH = 5, 4, 3, 6
POSITION = TrainPosition("train", 9, 0, 10, 1)
