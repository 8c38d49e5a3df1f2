"""Tuning methods that PEFT lacks, in PEFT's shape. Importing this package makes them known to PEFT.

Knows PEFT's three tables; knows no tasks and no trainer. Once imported, `peft.get_peft_model`,
`PeftModel.from_pretrained` and all that builds on them (TRL's trainers too) take these methods as they take
LoRA.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from finetune.tuners.bitfit import BITFIT, BitFitConfig, BitFitModel
from finetune.tuners.bottleneck import BOTTLENECK, BottleneckConfig, BottleneckModel

# PEFT's own way in, `register_peft_method`, refuses names outside its enumeration. A member of that
# enumeration equals its plain string and hashes alike, so plain strings are found in these dicts wherever
# PEFT looks them up.
for _name, _config, _tuner in (
    (BOTTLENECK, BottleneckConfig, BottleneckModel),
    (BITFIT, BitFitConfig, BitFitModel),
):
    PEFT_TYPE_TO_CONFIG_MAPPING[_name] = _config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[_name] = _tuner  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[_name] = _tuner.prefix  # type: ignore[index]

__all__ = ["BITFIT", "BOTTLENECK", "BitFitConfig", "BitFitModel", "BottleneckConfig", "BottleneckModel"]
