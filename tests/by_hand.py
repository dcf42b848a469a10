"""What tests compare with: metrics and choices worked out anew, without the code that they test."""
import math

import numpy as np


def mean_iou(pairs):
    """Mean IoU in percent of pairs of label maps (predicted, annotated), over the classes that occur; 255 is no label."""
    predicted, annotated = (np.concatenate([np.asarray(pair[k]).ravel() for pair in pairs]) for k in (0, 1))
    predicted, annotated = predicted[annotated != 255], annotated[annotated != 255]
    classes = np.union1d(predicted, annotated)
    own = [(predicted == c, annotated == c) for c in classes]
    return 100 * np.mean([(one & other).sum() / (one | other).sum() for one, other in own])


def accuracy(pairs):
    """Percent of pairs of labels (predicted, annotated) that are equal."""
    return 100 * np.mean([int(predicted) == int(annotated) for predicted, annotated in pairs])


class Watched(list):
    """Pairs (predicted, annotated) of all samples that an Evaluator got."""

    def see(self, samples):
        for sample in samples:
            if 'pred_sem_seg' in sample:
                self.append([sample.get(key).data.squeeze(0).cpu().numpy() for key in ('pred_sem_seg', 'gt_sem_seg')])
            else:
                self.append([sample.get(key).item() for key in ('pred_label', 'gt_label')])

    def metric(self):
        return mean_iou(self) if np.ndim(self[0][0]) else accuracy(self)


def plateau_centre(timesteps, scores, plateau):
    """Of the run of candidates around the best that lose at most ``plateau`` of the scores' range: the one nearest the centre of
    sqrt(t). An end that is better than all others is taken itself."""
    for end, *others in (scores, scores[::-1]):
        if all(end > other for other in others):
            return timesteps[scores.index(end)]
    best, least = scores.index(max(scores)), max(scores) - plateau * (max(scores) - min(scores))
    first = next(k + 1 for k in range(best, -2, -1) if k < 0 or scores[k] < least)
    last = next(k - 1 for k in range(best, len(scores) + 1) if k == len(scores) or scores[k] < least)
    centre = (math.sqrt(timesteps[first]) + math.sqrt(timesteps[last])) / 2
    return min(timesteps[first:last + 1], key=lambda t: (round(abs(math.sqrt(t) - centre), 6), -t))


def choice(result):
    """The timestep that a SelectionResult should have, by its candidates' scores."""
    return plateau_centre([c.timestep for c in result.candidates], [c.score for c in result.candidates],
                          result.plateau)
