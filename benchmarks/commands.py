"""The commands of `itl`, and the studies of `itl bench run`.

Each has its words, a summary, a dataclass whose fields are its flags, and the function that takes
one. `benchmarks.cli` reads them.
"""

from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    summary: for the list of commands. config: "module:dataclass" whose fields are the flags.
    run: "module:function" that takes the dataclass. resumes: whether an interrupted command,
    given again, goes on from where it stopped.
    """

    summary: str
    config: str
    run: str
    resumes: bool = False


def _own(subject: str, summary: str, config: str, run: str, resumes: bool = False) -> Command:
    module = f"benchmarks.commands_{subject}"
    return Command(summary, f"{module}:{config}", f"{module}:{run}", resumes)


# A further study is one line.
STUDIES = {
    "throughput": Command(
        "how fast the library is, against what one would use instead",
        "benchmarks.throughput:ThroughputConfig",
        "benchmarks.throughput:throughput",
    ),
    "quickstart-seeds": Command(
        "the quickstart over five seeds: is its result one lucky run?",
        "benchmarks.quickstart_seeds:QuickstartSeedsConfig",
        "benchmarks.quickstart_seeds:quickstart_seeds",
        resumes=True,
    ),
    "throughput-sft": Command(
        "how fast a pretrained model is fine-tuned and asked, against the usual way",
        "benchmarks.throughput_sft:ThroughputSFTConfig",
        "benchmarks.throughput_sft:throughput_sft",
    ),
    "large-scale": Command(
        "pretrained models that know facts or look them up: recall, HellaSwag, drift",
        "benchmarks.large_scale:LargeScaleConfig",
        "benchmarks.large_scale:large_scale",
        resumes=True,
    ),
    "tool-calling": Command(
        "small models that learn to call tools, and are paid for what comes of it",
        "benchmarks.tool_calling:ToolCallingConfig",
        "benchmarks.tool_calling:tool_calling",
        resumes=True,
    ),
    "transcoder-validation": Command(
        "a calculator tool seen from inside: transcoders in place of MLPs, layer by layer",
        "benchmarks.transcoder_validation:TranscoderValidationConfig",
        "benchmarks.transcoder_validation:transcoder_validation",
        resumes=True,
    ),
    "intervention-layers": Command(
        "at which layers a delta carries the tool, against controls",
        "benchmarks.intervention_layers:InterventionLayersConfig",
        "benchmarks.intervention_layers:intervention_layers",
        resumes=True,
    ),
    "intervention-dose": Command(
        "what more or less of a delta does",
        "benchmarks.intervention_dose:InterventionDoseConfig",
        "benchmarks.intervention_dose:intervention_dose",
        resumes=True,
    ),
    "throughput-transcoders": Command(
        "how fast transcoders are trained, fed and intervene, against what bounds them",
        "benchmarks.throughput_transcoders:ThroughputTranscodersConfig",
        "benchmarks.throughput_transcoders:throughput_transcoders",
    ),
    "throughput-tools": Command(
        "how fast tools, their environment and generated samples are",
        "benchmarks.throughput_tools:ThroughputToolsConfig",
        "benchmarks.throughput_tools:throughput_tools",
    ),
    **{
        name: Command(
            summary,
            f"benchmarks.{name}:{name.capitalize()}Config",
            f"benchmarks.{name}:{name}",
            resumes=name not in ("ensembles", "scaling"),
        )
        for name, summary in {
            "ensembles": "many small models trained as one, against one at a time",
            "scaling": "the cost of a training step as people grow",
            "speedrun": "time to a recall of 0.95: the fast recipe and the published one",
            "bounds": "parameters against facts: knowing them, and looking them up",
            "circuit": "a transformer built by hand that looks up any fact, and trained ones",
            "generalisation": "recall on unseen names against the people trained on",
            "capacity": "the smallest model that knows its facts, with exposures at will",
            "compressibility": "parameters for worlds whose families share values",
        }.items()
    },
}

COMMANDS = {
    "quickstart": Command(
        "the whole loop in minutes on a CPU",
        "benchmarks.quickstart:QuickstartConfig",
        "benchmarks.commands_train:run_quickstart",
        resumes=True,
    ),
    "facts build": _own("world", "make a database of people", "FactsBuild", "facts_build"),
    "facts trivia": _own(
        "world", "make a database of trivia questions", "FactsTrivia", "facts_trivia"
    ),
    "facts query": _own("world", "look up what is known about a name", "FactsQuery", "facts_query"),
    "facts export": _own("world", "write facts to a file", "FactsExport", "facts_export"),
    "validate": _own(
        "world", "check that a database serves as environment", "Validate", "run_validate"
    ),
    "play": _own("play", "take the agent's place in a terminal", "Play", "run_play"),
    "rollout": _own(
        "play", "let an agent play, and keep its episodes", "Rollout", "run_rollout", resumes=True
    ),
    "show": _own("play", "print episodes, with what is trained marked", "Show", "run_show"),
    "train memory": _own(
        "train",
        "train a small Llama to know facts or to look them up",
        "TrainMemory",
        "run_train_memory",
        resumes=True,
    ),
    "train sft": _own(
        "train",
        "fine-tune a pretrained model to know facts or to look them up",
        "TrainSFT",
        "run_train_sft",
        resumes=True,
    ),
    "train rl": _own(
        "rl", "train a model to look facts up by GRPO", "TrainRL", "train_rl", resumes=True
    ),
    "eval": _own("train", "measure the recall of a trained model", "Eval", "run_eval"),
    "sweep memory": _own(
        "sweep",
        "train a small Llama for each combination of settings, here or on Slurm",
        "SweepMemory",
        "run_sweep_memory",
        resumes=True,
    ),
    "sweep sft": _own(
        "sweep",
        "fine-tune a pretrained model for each combination of settings, here or on Slurm",
        "SweepSFT",
        "run_sweep_sft",
        resumes=True,
    ),
    "sweep eval": _own(
        "sweep",
        "measure every checkpoint of many fine-tuning runs, here or on Slurm",
        "SweepEval",
        "run_sweep_eval",
        resumes=True,
    ),
    "sweep status": _own("sweep", "say how a sweep stands", "SweepStatus", "sweep_status"),
    "toolcall data": _own(
        "toolcall",
        "make data of tool calling, verified by execution and split",
        "ToolcallData",
        "toolcall_data",
    ),
    "toolcall train": _own(
        "toolcall",
        "train a small Llama from scratch to call tools",
        "ToolcallTrain",
        "toolcall_train",
        resumes=True,
    ),
    "toolcall sft": _own(
        "toolcall",
        "fine-tune a pretrained model to call tools",
        "ToolcallSFT",
        "toolcall_sft",
        resumes=True,
    ),
    "toolcall rl": _own(
        "rl", "train a model to call tools by GRPO", "ToolcallRL", "toolcall_rl", resumes=True
    ),
    "toolcall eval": _own(
        "toolcall", "measure how well a model calls tools", "ToolcallEval", "toolcall_eval"
    ),
    "toolcall plot": _own("toolcall", "draw the metrics of a run", "ToolcallPlot", "toolcall_plot"),
    "toolformer data": _own(
        "toolformer",
        "make data of calculator calls as text, and of sentences to copy",
        "ToolformerData",
        "toolformer_data",
    ),
    "toolformer train": _own(
        "toolformer",
        "fine-tune a pretrained model to write calculator calls as text",
        "ToolformerTrain",
        "toolformer_train",
        resumes=True,
    ),
    "toolformer merge": _own(
        "toolformer",
        "write a run's model without an adapter",
        "ToolformerMerge",
        "toolformer_merge",
    ),
    "toolformer try": _own(
        "toolformer", "ask a model for a call in your own words", "ToolformerTry", "toolformer_try"
    ),
    "transcoder collect": _own(
        "transcoder",
        "keep what the MLPs of a model read and add",
        "TranscoderCollect",
        "transcoder_collect",
        resumes=True,
    ),
    "transcoder train": _own(
        "transcoder",
        "train base transcoders on what was collected",
        "TranscoderTrain",
        "transcoder_train",
        resumes=True,
    ),
    "transcoder delta": _own(
        "transcoder",
        "train deltas beside frozen bases",
        "TranscoderDelta",
        "transcoder_delta",
        resumes=True,
    ),
    "transcoder fuse": _own(
        "transcoder",
        "write a base and its delta as one transcoder",
        "TranscoderFuse",
        "transcoder_fuse",
    ),
    "transcoder validate": _own(
        "transcoder",
        "measure how well a transcoder fits",
        "TranscoderValidate",
        "transcoder_validate",
    ),
    "bench list": _own("train", "list the studies", "BenchList", "bench_list"),
    **{f"bench run {name}": study for name, study in STUDIES.items()},
}
