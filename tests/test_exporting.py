"""Exports load in the programs they are for, with the same change of the weights, and say what they are."""

import ast
import json
import shutil

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import collectionlora
from collectionlora.adapters.flux_names import original_names
from collectionlora.adapters.formats import read_lora
from collectionlora.adapters.low_rank import change
from collectionlora.adapters.recipe import EXPORTED, Recipe, read_adapter, write_adapter
from collectionlora.adapters.roles import STUDENT, Roles, target_weights
from collectionlora.backbones import FAMILIES
from collectionlora.backbones.comfyui import Student
from collectionlora.backbones.flux2 import FLUX_2, FLUX_2_KLEIN
from collectionlora.backbones.flux_kontext import FLUX_KONTEXT
from collectionlora.backbones.qwen_image_21 import QWEN_IMAGE_21
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS
from collectionlora.command_line.verbs import app
from collectionlora.exporting.export import export
from collectionlora.flow import few_step_sigmas
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.system.errors import UserError

TARGETS = ["first", "mix", "small"]
RECIPE = Recipe(
    base="Qwen/Qwen-Image-Edit-2509@0123abc",
    steps=4,
    shift=3.0,
    resolution=512,
    effects={"oil-paint": "<oil_paint_bedafo> turn it | into oil", "neon": "<neon_tirupo> neon: edges"},
    version="1",
)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.mix, self.small = nn.Linear(6, 8), nn.Conv2d(8, 5, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.small(self.mix(self.first(x).transpose(1, 2).unflatten(2, (2, 2))).flatten(2))


@pytest.fixture
def collection(tmp_path):
    """A collection folder with a finished adapter of rank 4, of which `first` has true rank 2."""
    roles = Roles(Network(), TARGETS, {STUDENT: 4})
    weights = roles.weights(STUDENT)
    weights = {name: (a, 0.2 * torch.randn_like(b)) for name, (a, b) in weights.items()}
    weights["first"][1][:, 2:] = 0
    write_adapter(tmp_path / "my-effects" / "collection.safetensors", weights, RECIPE)
    return tmp_path / "my-effects"


def changes(lora):
    return {name: change(pair) for name, pair in lora.weights.items()}


def in_base_model(collection, recipe):
    """The same adapter with another recipe."""
    lora, _ = read_adapter(collection / "collection.safetensors")
    write_adapter(collection / "collection.safetensors", lora.weights, recipe)


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("diffusers", "pytorch_lora_weights.safetensors"),
        ("peft", "adapter_model.safetensors"),
        ("comfyui", "my-effects.safetensors"),
        ("lightx2v", "my-effects.safetensors"),
    ],
)
def test_an_export_is_the_same_adapter_and_can_itself_be_used(tmp_path, collection, format, file):
    result = export(collection, format, tmp_path / "out")
    assert all((tmp_path / "out").joinpath(path).is_file() for path in result["files"])
    assert result["reduction"] is None
    expected = changes(read_adapter(collection / "collection.safetensors")[0])
    base = target_weights(Network(), TARGETS)
    found = read_lora(tmp_path / "out" / file, base)
    for name, matrix in changes(found).items():
        assert torch.equal(matrix, expected[name])
    assert read_adapter(tmp_path / "out" / file)[1] == RECIPE


def test_a_file_that_exists_is_replaced_only_on_request(tmp_path, collection):
    readme = tmp_path / "out" / "README.md"
    readme.parent.mkdir()
    readme.write_text("mine")
    with pytest.raises(UserError, match=r"README\.md: --out: exists already; give --overwrite, or another"):
        export(collection, "diffusers", tmp_path / "out")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    export(collection, "diffusers", tmp_path / "out", overwrite=True)
    assert readme.read_text() != "mine"
    export(collection, "diffusers", tmp_path / "out")
    with pytest.raises(UserError, match=r"README\.md: --out: exists already"):
        export(collection, "peft", tmp_path / "out")


def test_only_an_earlier_export_of_the_collection_is_replaced(tmp_path, collection):
    finished = collection / "collection.safetensors"
    other = shutil.copytree(collection, tmp_path / "other") / finished.name
    before = other.read_bytes()
    with pytest.raises(UserError, match=r"other/collection\.safetensors: --out: exists already"):
        export(finished, "comfyui", other.parent)
    assert other.read_bytes() == before
    export(other.parent, "diffusers", tmp_path / "out")
    with pytest.raises(UserError, match="--out: exists already"):
        export(collection, "diffusers", tmp_path / "out")
    export(other.parent, "diffusers", tmp_path / "out", rank=1)


def test_keys_for_lightx2v_are_the_names_of_modules_alone(tmp_path, collection):
    export(collection, "lightx2v", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "my-effects.safetensors",
    ]
    keys = set(load_file(tmp_path / "out" / "my-effects.safetensors"))
    assert keys == {f"{name}.lora_{side}.weight" for name in TARGETS for side in "AB"}


def test_diffusers_keys_carry_their_scale(tmp_path, collection):
    export(collection, "diffusers", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert set(tensors) == {f"transformer.{name}.lora_{side}.weight" for name in TARGETS for side in "AB"}
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler.pop("_class_name") == "FlowMatchEulerDiscreteScheduler"
    assert scheduler.pop("num_train_timesteps") == 1000
    expected = {
        "shift": 3.0,
        "stochastic_sampling": True,
        "shift_terminal": None,
        "use_dynamic_shifting": False,
    }
    assert scheduler == expected


def test_the_example_imports_nothing_of_ours_and_has_the_students_schedule(tmp_path, collection):
    export(collection, "diffusers", tmp_path / "out")
    tree = ast.parse((tmp_path / "out" / "example.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split(".")[0] for module in modules} == {"sys", "pathlib", "torch", "diffusers"}
    named = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(named["PROMPTS"]) == RECIPE.effects
    assert ast.literal_eval(named["REFERENCES"]) == RECIPE.references
    assert ast.literal_eval(named["(BASE, REVISION)"]) == ("Qwen/Qwen-Image-Edit-2509", "0123abc")
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in named["result"].keywords}
    assert arguments["true_cfg_scale"] == "1.0"
    sigmas = torch.tensor(eval(arguments["sigmas"], {"STEPS": RECIPE.steps}))
    torch.testing.assert_close(3 * sigmas / (1 + 2 * sigmas), few_step_sigmas(4, 3.0)[:4])


def test_every_client_is_told_the_sampler_that_the_student_was_made_for(tmp_path, collection):
    for sampler, stochastic, comfyui in (("stochastic", True, "lcm"), ("euler", False, "euler")):
        in_base_model(collection, RECIPE.model_copy(update={"sampler": sampler}))
        export(collection, "diffusers", tmp_path / sampler)
        scheduler = json.loads((tmp_path / sampler / "scheduler" / "scheduler_config.json").read_text())
        assert scheduler["stochastic_sampling"] == stochastic
        assert f"the sampler `{comfyui}`" in (tmp_path / sampler / "README.md").read_text()
        export(collection, "comfyui", tmp_path / f"{sampler}-comfyui")
        nodes = json.loads((tmp_path / f"{sampler}-comfyui" / "workflow.json").read_text()).values()
        assert [n["inputs"]["sampler_name"] for n in nodes if n["class_type"] == "KSampler"] == [comfyui]


def test_peft_loads_its_folder(tmp_path, collection):
    export(collection, "peft", tmp_path / "out")
    network, x = Network(), torch.randn(2, 4, 6)
    lora, _ = read_adapter(collection / "collection.safetensors")
    torch.manual_seed(0)
    roles = Roles(Network(), TARGETS, {STUDENT: 4})
    roles.load(STUDENT, lora.weights)
    state = {name.replace(".base_layer", ""): value for name, value in roles.network.state_dict().items()}
    network.load_state_dict({name: value for name, value in state.items() if "lora_" not in name})
    before = network(x)
    with roles.use(STUDENT):
        expected = roles.network(x)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(PeftModel.from_pretrained(network, tmp_path / "out")(x), expected)


def test_keys_of_diffusers_load_in_an_injected_network(tmp_path, collection):
    """The way that diffusers loads: inject an adapter of the file's rank, then set its tensors."""
    export(collection, "diffusers", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    state = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    config = LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS)
    model = inject_adapter_in_model(config, Network(), state_dict=state)
    outcome = set_peft_model_state_dict(model, state)
    assert not outcome.unexpected_keys
    assert not [key for key in outcome.missing_keys if "lora_" in key]


def test_comfyui_gets_alphas_and_a_workflow_that_holds_together(tmp_path, collection):
    export(collection, "comfyui", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "my-effects.safetensors")
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"diffusion_model.{name}.{part}" for name in TARGETS for part in parts}
    assert {float(tensors[f"diffusion_model.{name}.alpha"]) for name in TARGETS} == {4.0}
    assert not (tmp_path / "out" / "scheduler").exists()
    check_workflow(json.loads((tmp_path / "out" / "workflow.json").read_text()), "ModelSamplingAuraFlow")


def check_workflow(graph, shift_node):
    """Every link leads to a node, every node to the saved image, and the sampler is the student's."""
    links = {
        name: {value[0] for value in node["inputs"].values() if isinstance(value, list)}
        for name, node in graph.items()
    }
    assert set().union(*links.values()) <= set(graph)
    reached, waiting = set(), {"saved"}
    while waiting:
        reached |= waiting
        waiting = set().union(*(links[name] for name in waiting)) - reached
    assert reached == set(graph)
    by_class = {node["class_type"]: node["inputs"] for node in graph.values()}
    sampler = by_class["KSampler"]
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["cfg"]) == ("lcm", "simple", 1.0)
    assert sampler["steps"] == RECIPE.steps
    assert by_class["LoraLoaderModelOnly"]["lora_name"] == "my-effects.safetensors"
    assert by_class[shift_node]["model"] == ["lora", 0]
    # As `pictures.photos.resize` does.
    assert by_class["ImageScaleToTotalPixels"]["upscale_method"] == "lanczos"


def export_workflow(collection, base, out, shift_node):
    """The nodes for ComfyUI of the adapter over another base, which hold together."""
    in_base_model(collection, RECIPE.model_copy(update={"base": base}))
    export(collection, "comfyui", out)
    graph = json.loads((out / "workflow.json").read_text())
    check_workflow(graph, shift_node)
    return graph


def names_in(out):
    return list(load_file(out / "my-effects.safetensors"))


def test_flux_kontext_has_its_own_keys_and_nodes(tmp_path, collection):
    base = "black-forest-labs/FLUX.1-Kontext-dev"
    graph = export_workflow(collection, base, tmp_path / "out", "ModelSamplingFlux")
    assert all(name.startswith("transformer.") for name in names_in(tmp_path / "out"))
    shifted = graph["shifted"]["inputs"]
    assert torch.tensor(shifted["base_shift"]).exp() == pytest.approx(3.0)
    assert shifted["base_shift"] == shifted["max_shift"]
    assert graph["text"]["inputs"]["clip"] == ["padded", 0]
    padded = graph["padded"]
    # As many as the pipeline of diffusers encodes.
    assert (padded["class_type"], padded["inputs"]["min_length"]) == ("T5TokenizerOptions", 512)
    assert r"`\(` and `\)` in place" in (tmp_path / "out" / "README.md").read_text()


def test_2511_tells_comfyui_that_the_photo_is_at_sigma_0(tmp_path, collection):
    (tmp_path / "one" / "transformer").mkdir(parents=True)
    config = tmp_path / "one" / "transformer" / "config.json"
    (tmp_path / "one" / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}')
    for base, clean, told in (
        ("Qwen/Qwen-Image-Edit-2509", False, False),
        ("Qwen/Qwen-Image-Edit-2511", False, True),
        (str(tmp_path / "one"), False, False),
        (str(tmp_path / "one"), True, True),
    ):
        config.write_text(json.dumps({"zero_cond_t": clean}))
        graph = export_workflow(collection, base, tmp_path / "out", "ModelSamplingAuraFlow")
        methods = [node["inputs"].get("reference_latents_method") for node in graph.values()]
        assert ("index_timestep_zero" in methods) == told
        assert (
            graph["unet"]["inputs"]["unet_name"]
            == f"qwen_image_edit_{2511 if told else 2509}_bf16.safetensors"
        )


@pytest.mark.parametrize(("base", "guided"), [("FLUX.2-dev", True), ("FLUX.2-klein-base-4B", False)])
def test_flux_2_has_its_own_keys_and_nodes(tmp_path, collection, base, guided):
    name = f"black-forest-labs/{base}"
    graph = export_workflow(collection, name, tmp_path / "out", "ModelSamplingAuraFlow")
    assert all(name.startswith("transformer.") for name in names_in(tmp_path / "out"))
    assert (graph["positive"]["class_type"] == "FluxGuidance") == guided


def test_flux_2_in_comfyui_lacks_no_module():
    """It knows these four by their names in diffusers, and the others by those of the base's own code."""
    weights = target_weights(*FLUX_2.empty_network("black-forest-labs/FLUX.2-dev"))
    own_names, spelled = original_names(weights), FLUX_2.export.comfyui_names
    assert {f"diffusion_model.{theirs}": module for theirs, module in EXPORTED.items()} == {
        theirs: module for module, theirs in spelled.items()
    }
    others = {name for name in weights if "transformer_blocks" not in name} - set(spelled)
    assert others == {"x_embedder", "context_embedder", "norm_out.linear", "proj_out"}
    for module, theirs in spelled.items():
        assert own_names[theirs.removeprefix("diffusion_model.")] == (module,)


def test_modules_that_comfyui_calls_otherwise_are_read_back(tmp_path, collection):
    modules = ["double_stream_modulation_img.linear", "single_transformer_blocks.0.attn.to_out"]
    weights = {name: (torch.randn(4, 6), torch.randn(8, 4)) for name in modules}
    recipe = RECIPE.model_copy(update={"base": "black-forest-labs/FLUX.2-dev"})
    write_adapter(collection / "collection.safetensors", weights, recipe)
    export(collection, "comfyui", tmp_path / "out")
    keys = names_in(tmp_path / "out")
    assert "diffusion_model.double_stream_modulation_img.lin.lora_up.weight" in keys
    assert "transformer.single_transformer_blocks.0.attn.to_out.alpha" in keys
    base, path = {name: torch.zeros(8, 6) for name in modules}, tmp_path / "out" / "my-effects.safetensors"
    for found in (read_lora(path, base), read_adapter(path)[0]):  # by `init`, and by `edit`
        assert set(found.weights) == set(modules)
        for name, pair in found.weights.items():
            torch.testing.assert_close(change(pair), change(weights[name]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.export.workflow], ids=lambda f: f.name)
@pytest.mark.parametrize("side", [32, 64, 102, 512, 1024])
def test_a_workflow_works_at_the_size_of_edit(family, side):
    """The nodes' own arithmetic, and their bounds; the photo and the image have one size."""
    student = Student("a.safetensors", "x", family.name, 8, 3.0, "lcm", side, 2.5)
    graph = family.export.workflow(student)
    scaled, large = graph["scaled"]["inputs"], graph.get("large", graph["scaled"])["inputs"]
    assert 0.01 <= large["megapixels"] <= 16
    assert 1 <= large["resolution_steps"] <= 256
    for height, width in ((200, 300), (640, 480), (900, 1600), (500, 500)):
        times = (large["megapixels"] * 1024**2 / (height * width)) ** 0.5 / large["resolution_steps"]
        size = [
            round(s * times) * large["resolution_steps"] * scaled.get("scale_by", 1) for s in (height, width)
        ]
        assert size == list(WorkingSizes(side, family.side_multiple).find(height, width))
    readers = [name for name, n in graph.items() if n["inputs"].get("pixels") == ["scaled", 0]]
    assert readers == ([] if "latent" not in graph else ["latent"])
    for encoder in (
        n["inputs"] for n in graph.values() if n["class_type"].startswith("TextEncodeQwenImageEdit")
    ):
        assert "vae" not in encoder  # it would encode the photo at a million pixels
        assert {"latent": ["latent", 0]}.items() <= graph.get("reference", graph["positive"])[
            "inputs"
        ].items()


def test_qwen_image_21_has_its_own_keys_and_nodes(tmp_path, collection):
    graph = export_workflow(collection, "Qwen/Qwen-Image-2.1", tmp_path / "out", "ModelSamplingAuraFlow")
    assert all(name.startswith("transformer.") for name in names_in(tmp_path / "out"))
    # The photo is not scaled again, and the image has its size.
    assert graph["positive"]["inputs"]["images.image_1"] == ["scaled", 0]
    assert graph["positive"]["inputs"]["resolution"] == 0
    assert graph["sample"]["inputs"]["latent_image"] == ["positive", 2]


def test_brackets_of_a_prompt_are_escaped_for_clip_alone():
    """ComfyUI's tokenizers of CLIP and T5 take `(rough)` for emphasis; Qwen's reads it as it is."""
    prompt = "<sketch_kodule> a drawing (charcoal (rough)) :)"
    student = Student(
        "a.safetensors", prompt, "a base", steps=8, shift=3.0, sampler="lcm", resolution=1024, guidance=2.5
    )
    graph = FLUX_KONTEXT.export.workflow(student)
    assert graph["text"]["inputs"]["text"] == r"<sketch_kodule> a drawing \(charcoal \(rough\)\) :\)"
    for family in (QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS, QWEN_IMAGE_21, FLUX_2, FLUX_2_KLEIN):
        inputs = [node["inputs"] for node in family.export.workflow(student).values()]
        assert [found for i in inputs if (found := i.get("prompt", i.get("text")))] == [prompt]


@pytest.mark.parametrize("format", ["diffusers", "peft", "comfyui"])
def test_a_base_that_only_lives_here_says_so(tmp_path, collection, format):
    in_base_model(collection, RECIPE.model_copy(update={"base": "nano"}))
    result = export(collection, format, tmp_path / "out")
    assert not {"example.py", "workflow.json"} & {path.rsplit("/", 1)[1] for path in result["files"]}
    assert "collectionlora edit" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_is_filled_and_shows_previews(tmp_path, collection):
    Image.new("RGB", (4, 4)).save(tmp_path / "neon.png")
    export(collection, "diffusers", tmp_path / "out", previews=[tmp_path / "neon.png"])
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["base_model"] == "Qwen/Qwen-Image-Edit-2509"
    assert {"lora", "diffusers", "image-to-image"} <= set(data["tags"])
    assert data["license"] == "apache-2.0"
    assert data["instance_prompt"] == "<oil_paint_bedafo>, <neon_tirupo>"
    first, second = data["widget"]
    assert first == {"text": RECIPE.effects["oil-paint"]}
    assert second == {"text": RECIPE.effects["neon"], "output": {"url": "images/neon.png"}}
    assert (tmp_path / "out" / second["output"]["url"]).is_file()
    assert r"turn it \| into oil" in body
    for text in ("![neon](images/neon.png)", "4 steps, shift 3", "example.py"):
        assert text in body


def test_the_header_says_what_the_file_is(tmp_path, collection):
    export(collection, "diffusers", tmp_path / "out")
    with safe_open(tmp_path / "out" / "pytorch_lora_weights.safetensors", "pt") as file:
        header = file.metadata()
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.title"] == "my-effects"
    assert header["modelspec.architecture"] == "qwen-image-edit-plus/lora"
    assert header["modelspec.trigger_phrase"] == "<oil_paint_bedafo>, <neon_tirupo>"
    assert header["modelspec.date"].startswith("20")
    assert json.loads(header["triggers"])["neon"] == "<neon_tirupo>"
    assert json.loads(header["collectionlora.versions"])["collectionlora"] == collectionlora.__version__


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_smaller_rank_states_the_error_that_the_file_has(tmp_path, collection, rank):
    result = collectionlora.export(collection / "collection.safetensors", "comfyui", tmp_path / "out", rank)
    before = changes(read_adapter(collection / "collection.safetensors")[0])
    lora = read_lora(tmp_path / "out" / "collection.safetensors")
    assert result["rank"] == lora.rank == rank
    error = {name: float((matrix - before[name]).norm()) for name, matrix in changes(lora).items()}
    norm = {name: float(matrix.norm()) for name, matrix in before.items()}
    stated = result["reduction"]
    relative = {name: error[name] / norm[name] for name in error}
    assert stated["worst"] == pytest.approx(max(relative.values()), rel=1e-3)
    assert relative[stated["worst_module"]] == max(relative.values())
    whole = torch.tensor(list(error.values())).norm() / torch.tensor(list(norm.values())).norm()
    assert stated["overall"] == pytest.approx(float(whole), rel=1e-3)
    exact = {1: set(), 2: {"first"}, 3: {"first", "small"}}[rank]
    assert {name for name, value in relative.items() if value < 1e-3} == exact
    for name in before:  # Eckart and Young: nothing of this rank is nearer
        best = torch.linalg.svdvals(before[name])[rank:].norm()
        assert error[name] == pytest.approx(float(best), abs=1e-3 * norm[name])
    assert f"rank 4 reduced to {rank}" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_prints_one_json_object(tmp_path, collection):
    arguments = ["export", str(collection), "--format", "peft", "--out", str(tmp_path / "out"), "--rank", "2"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reduction"]["rank"] == 2
    assert "at most" in CliRunner().invoke(app, arguments).stderr


def test_what_cannot_be_exported_is_refused(tmp_path, collection):
    Image.new("RGB", (4, 4)).save(tmp_path / "oil.png")
    cases = [
        ({"format": "gguf"}, "choose from diffusers, peft, comfyui, lightx2v"),
        ({"rank": 5}, "give a smaller rank"),
        ({"previews": [tmp_path / "oil.png"]}, "named after no effect"),
        ({"previews": [tmp_path / "neon.png"]}, "not an image file"),
        ({"collection": tmp_path}, "not distilled yet"),
    ]
    for changed, message in cases:
        arguments = {"collection": collection, "format": "peft", "out": tmp_path / "out"} | changed
        with pytest.raises(UserError, match=message):
            export(**arguments)
    assert not (tmp_path / "out").exists()


def test_comfyui_is_refused_where_it_would_leave_modules_out(tmp_path, collection):
    for base in ("meituan-longcat/LongCat-Image-Edit", "someone/other-model"):
        in_base_model(collection, RECIPE.model_copy(update={"base": base}))
        with pytest.raises(UserError, match="every module"):
            export(collection, "comfyui", tmp_path / "out")
        assert export(collection, "diffusers", tmp_path / "out")["files"]


def test_the_base_is_what_its_folder_or_else_its_name_says(tmp_path, collection):
    for name, architecture in (("FluxKontextPipeline", "flux-1-kontext-dev"), ("OtherPipeline", "unknown")):
        folder = tmp_path / "Qwen-Image-Edit" / name  # which the path would call another base
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
        in_base_model(collection, RECIPE.model_copy(update={"base": str(folder)}))
        export(collection, "diffusers", tmp_path / "out")
        with safe_open(tmp_path / "out" / "pytorch_lora_weights.safetensors", "pt") as file:
            assert file.metadata()["modelspec.architecture"] == f"{architecture}/lora"


@pytest.mark.parametrize(
    ("base", "file"),
    [
        ("Qwen/Qwen-Image-Edit", "qwen_image_edit_bf16.safetensors"),
        ("Qwen/Qwen-Image-Edit-2509", "qwen_image_edit_2509_bf16.safetensors"),
        ("Qwen/Qwen-Image-Edit-2511@0123abc", "qwen_image_edit_2511_bf16.safetensors"),
        ("Qwen/Qwen-Image-2.1", "qwen_image_2.1_bf16.safetensors"),
        ("black-forest-labs/FLUX.1-Kontext-dev", "flux1-dev-kontext_fp8_scaled.safetensors"),
        ("black-forest-labs/FLUX.2-dev", "flux2_dev_fp8mixed.safetensors"),
        ("black-forest-labs/FLUX.2-klein-4B@main", "flux-2-klein-4b.safetensors"),
        ("black-forest-labs/FLUX.2-klein-base-9B", "flux-2-klein-base-9b.safetensors"),
    ],
)
def test_a_workflow_names_the_file_of_its_own_base(tmp_path, collection, base, file):
    in_base_model(collection, RECIPE.model_copy(update={"base": base}))
    export(collection, "comfyui", tmp_path / "out")
    graph = json.loads((tmp_path / "out" / "workflow.json").read_text())
    assert graph["unet"]["inputs"]["unet_name"] == file
