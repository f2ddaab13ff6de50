// A network with one hidden layer: pixels -> ReLU -> ten classes. Weights are row-major [inputs x outputs].

export interface Network {
  inputs: number;
  hidden: number;
  classes: number;
  w1: Float32Array;
  b1: Float32Array;
  w2: Float32Array;
  b2: Float32Array;
}

/** He initialisation: keeps the spread of activations through a ReLU. */
export function makeNetwork(inputs: number, hidden: number, classes: number, random: () => number): Network {
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const weights = (rows: number, columns: number) =>
    Float32Array.from({ length: rows * columns }, () => normal() * Math.sqrt(2 / rows));
  return {
    inputs,
    hidden,
    classes,
    w1: weights(inputs, hidden),
    b1: new Float32Array(hidden),
    w2: weights(hidden, classes),
    b2: new Float32Array(classes),
  };
}

function layer(x: Float32Array, w: Float32Array, b: Float32Array, outputs: number): Float32Array {
  const y = Float32Array.from(b);
  for (let i = 0; i < x.length; i++) {
    const xi = x[i]!;
    if (xi === 0) continue;
    for (let j = 0; j < outputs; j++) y[j]! += xi * w[i * outputs + j]!;
  }
  return y;
}

/** Hidden activations and class probabilities of one image. */
export function forward(net: Network, x: Float32Array): { hidden: Float32Array; probabilities: Float32Array } {
  const hidden = layer(x, net.w1, net.b1, net.hidden).map((v) => Math.max(0, v));
  const scores = layer(hidden, net.w2, net.b2, net.classes);
  const top = Math.max(...scores);
  const powers = scores.map((v) => Math.exp(v - top));
  const sum = powers.reduce((a, v) => a + v, 0);
  return { hidden, probabilities: powers.map((v) => v / sum) };
}

export const predict = (net: Network, x: Float32Array): number => {
  const p = forward(net, x).probabilities;
  return p.indexOf(Math.max(...p));
};

/** One step of gradient descent on one image, in place. Returns its loss (cross entropy, nats). */
export function learn(net: Network, x: Float32Array, label: number, rate: number): number {
  const { hidden, probabilities } = forward(net, x);
  const loss = -Math.log(Math.max(probabilities[label]!, 1e-12));
  const delta2 = probabilities.map((p, j) => p - (j === label ? 1 : 0));
  const delta1 = new Float32Array(net.hidden);
  for (let i = 0; i < net.hidden; i++) {
    const h = hidden[i]!;
    let back = 0;
    for (let j = 0; j < net.classes; j++) {
      back += delta2[j]! * net.w2[i * net.classes + j]!;
      net.w2[i * net.classes + j]! -= rate * delta2[j]! * h;
    }
    delta1[i] = h > 0 ? back : 0;
  }
  for (let j = 0; j < net.classes; j++) net.b2[j]! -= rate * delta2[j]!;
  for (let i = 0; i < net.inputs; i++) {
    const xi = x[i]!;
    if (xi === 0) continue;
    for (let j = 0; j < net.hidden; j++) net.w1[i * net.hidden + j]! -= rate * delta1[j]! * xi;
  }
  for (let j = 0; j < net.hidden; j++) net.b1[j]! -= rate * delta1[j]!;
  return loss;
}
