//! Losses over labels (as in Show-o). B rows, L positions, V vocabulary; a negative label is ignored.
//! Where the reference gives NaN or takes the whole batch for an empty group, these give 0.

use burn::tensor::{Int, Tensor};
use unif2ace_ops::cross_entropy;

/// Label of a position without a target.
pub const IGNORED: i64 = -100;

/// Mean cross-entropy in nats over the positions that have a label; 0 when none has.
pub fn labelled_mean(logits_BLV: Tensor<3>, labels_BL: Tensor<2, Int>) -> Tensor<1> {
    let [batch, length, vocab] = logits_BLV.dims();
    if batch * length == 0 {
        return Tensor::zeros([1], &logits_BLV.device());
    }
    let labels_R = labels_BL.reshape([batch * length]);
    let num = labels_R.clone().greater_equal_elem(0).int().sum().into_data().iter::<i64>().sum::<i64>();
    cross_entropy(logits_BLV.reshape([batch * length, vocab]), labels_R).sum() / num.max(1) as f64
}

/// Generation: every position from the start-of-image mark (place `max_seq_length + 1`) to the end predicts its own token. The two
/// marks count too, as in the reference.
pub fn t2i_loss(logits_BLV: Tensor<3>, labels_BL: Tensor<2, Int>, max_seq_length: usize) -> Tensor<1> {
    let [batch, length, _] = logits_BLV.dims();
    let start = max_seq_length + 1;
    if batch == 0 || start >= length {
        return Tensor::zeros([1], &logits_BLV.device());
    }
    labelled_mean(logits_BLV.narrow(1, start, length - start), labels_BL.narrow(1, start, length - start))
}

/// Understanding and text: every position predicts the token after it.
pub fn next_token_loss(logits_BLV: Tensor<3>, labels_BL: Tensor<2, Int>) -> Tensor<1> {
    let [batch, length, _] = logits_BLV.dims();
    if batch == 0 || length < 2 {
        return Tensor::zeros([1], &logits_BLV.device());
    }
    labelled_mean(logits_BLV.narrow(1, 0, length - 1), labels_BL.narrow(1, 1, length - 1))
}
