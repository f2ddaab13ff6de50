// train: fits the network and leaves an ONNX model behind.
// arguments: folder of `prepare`, model file, history file, hidden units, epochs, learning rate, seed
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readTable } from "./csv.ts";
import { learn, makeNetwork, predict } from "./network.ts";
import { writeOnnx } from "./onnx.ts";
import { randomSource, shuffle } from "./random.ts";

const [data, modelFile, historyFile, hidden, epochs, rate, seed] = process.argv.slice(2);
if (data === undefined || modelFile === undefined || historyFile === undefined)
  throw new Error("arguments: folder, model file, history file, …");
const stats = JSON.parse(readFileSync(join(data, "stats.json"), "utf8")) as { pixels: number };
const images = readTable(join(data, "train.csv")).rows.map((row) => ({
  x: Float32Array.from(row.slice(0, -1), (v) => v / 16),
  label: row.at(-1)!,
}));
// one image in ten is held back, to see how well the network does on what it has not learnt
const held = images.splice(0, Math.floor(images.length / 10));
console.log(
  `training on ${images.length} images, ${held.length} held back; ${hidden} hidden units, ${epochs} epochs, rate ${rate}`,
);

const random = randomSource(Number(seed));
const network = makeNetwork(stats.pixels, Number(hidden), 10, random);
const history: { epoch: number; loss: number; accuracy: number }[] = [];
const began = performance.now();
for (let epoch = 1; epoch <= Number(epochs); epoch++) {
  const step = Number(rate) * (1 - (epoch - 1) / Number(epochs)); // falls to nearly zero
  const loss =
    shuffle(images, random).reduce((sum, { x, label }) => sum + learn(network, x, label, step), 0) / images.length;
  const accuracy = held.filter(({ x, label }) => predict(network, x) === label).length / held.length;
  history.push({ epoch, loss, accuracy });
  console.log(
    `epoch ${String(epoch).padStart(2)}/${epochs}  loss ${loss.toFixed(4)}  accuracy on held back ${(accuracy * 100).toFixed(1)} %`,
  );
}
const model = writeOnnx(network, "sallyport digits pipeline");
writeFileSync(modelFile, model);
writeFileSync(
  historyFile,
  `${["epoch,loss,accuracy", ...history.map((h) => `${h.epoch},${h.loss.toFixed(6)},${h.accuracy.toFixed(6)}`)].join("\n")}\n`,
);
console.log(`wrote a model of ${model.length} bytes after ${((performance.now() - began) / 1000).toFixed(1)} s`);
