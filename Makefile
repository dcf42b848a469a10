# make demo    environment, data, then the segmentation demo: sweep, training, evaluation, pictures
# make test    environment, then the tests
# make lint    ruff
# make bench   forward pass, training, sweep and growth beside their peers and limits; QUICK=--quick shows in seconds that it runs
# make bench-selection   every score against an exhaustive search; trains two more small DiTs first; hours
# make compare   the demo against other backbones in one table; SEEDS and COMPARED say how many times, and what
# make mae     pretrains the ViT that the comparison's MAE rows need, where its weights are not there
# make clean   removes the environment and caches; data and results stay
#
# PYTHON=python3.12 make test   another Python than python3, 3.10 or newer
# VENV=/tmp/venv make test      another folder for the environment
# TORCH='...' make test         what pip installs first, for instance with an index of builds without CUDA
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 'torch>=2.4' torchvision
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SCENES := data/fashion_scenes/.complete
PRETRAINING := data/fashion_scenes/.complete_pretraining
MAE := configs/baselines/mae_vit_fashion.pth
SEEDS ?= 0 1 2
COMPARED ?= configs/dit_aselect_fashion_scenes.py \
	$(foreach name,resnet18 vit mae_frozen dit_fixed,configs/baselines/$(name)_fashion_scenes.py)
IMAGES := data/fashion_scenes/img_dir/pretrain data/fashion_mnist/train-images-idx3-ubyte

.PHONY: test demo lint bench bench-selection compare mae clean
.DELETE_ON_ERROR:

test: $(INSTALLED)
	$(BIN)/python -m pytest

demo: $(INSTALLED) $(SCENES)
	$(BIN)/python tools/train.py configs/dit_aselect_fashion_scenes.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/forward.py $(QUICK)
	$(BIN)/python benchmarks/training.py $(QUICK)
	$(BIN)/python benchmarks/sweep.py $(QUICK)
	$(BIN)/python benchmarks/growth.py $(QUICK)

bench-selection: work_dirs/pixel_dit/loss.png work_dirs/flow_dit/loss.png
	$(BIN)/python benchmarks/selection.py --out benchmarks/results/selection.json

compare: $(INSTALLED) $(SCENES) $(MAE)
	$(BIN)/python tools/compare.py $(COMPARED) --seeds $(SEEDS) --out benchmarks/results/compare.json

mae: $(MAE)

lint: $(INSTALLED)
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

# PyTorch comes in a call of its own: onedl-mmcv is built in an environment without it, hence quickly and without compiled
# operators, which nothing here needs. grad-cam, of which mmseg's tool needs an old one, would bring a second OpenCV. The last line is for machines without libGL, where opencv-python does not load.
$(INSTALLED): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo '$(PYTHON) is missing or older than 3.10: name a newer one, as in PYTHON=python3.12 make $(MAKECMDGOALS)'; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) cannot make environments, as it lacks ensurepip: on Debian, apt-get install python3-venv'; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install -e '.[onedl,dev,export]'
	$(BIN)/pip install --no-deps 'grad-cam<1.5' ttach
	$(BIN)/python -c 'import cv2' || { $(BIN)/pip uninstall -y opencv-python && $(BIN)/pip install opencv-python-headless; }
	touch $@

$(SCENES): tools/dataset_converters/fashion_mnist.py tools/dataset_converters/fashion_scenes.py | $(INSTALLED)
	$(BIN)/python tools/dataset_converters/fashion_mnist.py data/fashion_mnist
	$(BIN)/python tools/dataset_converters/fashion_scenes.py data/fashion_mnist data/fashion_scenes
	touch $@

$(PRETRAINING): tools/dataset_converters/fashion_scenes.py | $(SCENES)
	$(BIN)/python tools/dataset_converters/fashion_scenes.py data/fashion_mnist data/fashion_scenes --pretrain 50000
	touch $@

work_dirs/pixel_dit/loss.png: | $(PRETRAINING)
	$(BIN)/python tools/pretrain_dit.py $(@D) $(IMAGES) --work-dir $(@D)_work --dit-steps 5000 --pixels

work_dirs/flow_dit/loss.png: | $(PRETRAINING)
	$(BIN)/python tools/pretrain_dit.py $(@D) $(IMAGES) --work-dir $(@D)_work --dit-steps 5000 --flow --vae configs/fashion_dit

$(MAE):
	$(MAKE) $(PRETRAINING)  # not a prerequisite: where the weights are there, nobody needs its images
	$(BIN)/python tools/train.py configs/baselines/mae_vit_fashion_pretrain.py --work-dir work_dirs/mae_vit_fashion --resume
	$(BIN)/python tools/model_converters/publish_backbone.py work_dirs/mae_vit_fashion/iter_10000.pth $@
