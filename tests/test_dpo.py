"""Oracles: the loss and its gradient in closed form, the exact world, where the optimum is known, and a step by hand."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab import dpo, language_model, oracle
from rlhf_lab.dpo import DPOConfig, dpo_loss, implicit_rewards
from rlhf_lab.language_model import encode, train_tokenizer
from rlhf_lab.oracle import Language, TabularPolicy
from rlhf_lab.ratings import sigmoid if False else F
