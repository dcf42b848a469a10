"""The pictures of predictions. Imported when a config names it, since it needs MMSegmentation."""
import mmcv
import torch
from mmengine.dist import master_only
from mmseg.visualization import SegLocalVisualizer

from mmaselect.pictures import masks_with_legend
from mmaselect.registry import VISUALIZERS


@VISUALIZERS.register_module()
class LegendVisualizer(SegLocalVisualizer):
    """SegLocalVisualizer that draws image, truth and prediction side by side, enlarged to 512 pixels or more, with a legend.

    The arguments are SegLocalVisualizer's; ``alpha`` is the masks' opacity.
    """

    @master_only
    def add_datasample(self, name, image, data_sample=None, draw_gt=True, draw_pred=True, show=False, wait_time=0, out_file=None,
                       step=0, **kwargs):
        """As SegLocalVisualizer's: ``image`` is (H, W, 3) uint8 in RGB. What has no mask is drawn by that."""
        wanted = [(draw_gt, 'gt_sem_seg', 'truth'), (draw_pred, 'pred_sem_seg', 'prediction')]
        # (1, H, W) tensors, and from browse_dataset arrays
        masks = {title: torch.as_tensor(getattr(data_sample, key).data).cpu().numpy()[0] for draw, key, title in wanted
                 if draw and data_sample is not None and key in data_sample}
        if not masks:
            super().add_datasample(name, image, data_sample, draw_gt, draw_pred, show, wait_time, out_file, step, **kwargs)
            return
        meta = self.dataset_meta
        picture = masks_with_legend(image, masks, meta['classes'], meta['palette'], opacity=self.alpha)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(picture), out_file)
        elif not show:
            self.add_image(name, picture, step)
