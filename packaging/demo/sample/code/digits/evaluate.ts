// evaluate: reads the ONNX model back, tries it on the test set, leaves metrics and a plot behind.
// arguments: folder of `prepare`, model file, history file, metrics file, plot file
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readTable } from "./csv.ts";
import { predict } from "./network.ts";
import { readOnnx } from "./onnx.ts";
import { Picture, shade, type Colour } from "./png.ts";

const [data, modelFile, historyFile, metricsFile, plotFile] = process.argv.slice(2);
if (
  data === undefined ||
  modelFile === undefined ||
  historyFile === undefined ||
  metricsFile === undefined ||
  plotFile === undefined
) {
  throw new Error("arguments: folder, model file, history file, metrics file, plot file");
}
const network = readOnnx(readFileSync(modelFile));
const rows = readTable(join(data, "test.csv")).rows;
/** confusion[truth][guess] */
const confusion = Array.from({ length: 10 }, () => new Array<number>(10).fill(0));
for (const row of rows)
  confusion[row.at(-1)!]![
    predict(
      network,
      Float32Array.from(row.slice(0, -1), (v) => v / 16),
    )
  ]!++;

const ratio = (part: number, whole: number) => (whole === 0 ? 0 : part / whole);
const right = confusion.reduce((sum, row, digit) => sum + row[digit]!, 0);
const accuracy = ratio(right, rows.length);
const classes = confusion.map((row, digit) => {
  const recall = ratio(
    row[digit]!,
    row.reduce((a, b) => a + b, 0),
  );
  const precision = ratio(
    row[digit]!,
    confusion.reduce((sum, other) => sum + other[digit]!, 0),
  );
  return { precision, recall, f1: ratio(2 * precision * recall, precision + recall) };
});
const mean = (of: (c: (typeof classes)[number]) => number) =>
  classes.reduce((sum, c) => sum + of(c), 0) / classes.length;
const metrics = {
  accuracy,
  precision: mean((c) => c.precision),
  recall: mean((c) => c.recall),
  f1: mean((c) => c.f1),
  images: rows.length,
  wrong: rows.length - right,
};
for (const [digit, c] of classes.entries())
  console.log(`digit ${digit}: precision ${c.precision.toFixed(3)}, recall ${c.recall.toFixed(3)}`);
console.log(`accuracy ${accuracy.toFixed(4)}: ${right} of ${rows.length} right`);
if (accuracy < 0.9) console.error("accuracy is below 0.9: look at the learning rate and the number of epochs");
writeFileSync(metricsFile, `${JSON.stringify(metrics, null, 2)}\n`);

const INK: Colour = [23, 37, 84];
const GREY: Colour = [120, 128, 144];
const BLUE: Colour = [37, 99, 235];
const RED: Colour = [220, 38, 38];
const picture = new Picture(940, 470);
picture.text("truth", 14, 12, GREY, 2);
picture.text("guess", 200, 446, GREY, 2);
const cell = 38;
confusion.forEach((row, truth) => {
  const total = row.reduce((a, b) => a + b, 0);
  picture.text(String(truth), 16, 46 + truth * cell, INK, 2);
  picture.text(String(truth), 46 + 12 + truth * cell, 422, INK, 2);
  row.forEach((count, guess) => {
    const share = ratio(count, total);
    const ink = truth === guess ? BLUE : RED;
    picture.box(
      46 + guess * cell,
      34 + truth * cell - 2,
      cell - 2,
      cell - 2,
      count === 0
        ? [244, 246, 250]
        : shade(Math.max(0.15, truth === guess ? share * 0.85 : Math.min(1, share * 6)), ink),
    );
    if (count > 0)
      picture.text(
        String(count),
        46 + guess * cell + (count > 9 ? 6 : 12),
        44 + truth * cell,
        share > 0.5 ? [255, 255, 255] : INK,
        2,
      );
  });
});

const history = readTable(historyFile).rows.map(([epoch = 0, loss = 0, held = 0]) => ({ epoch, loss, held }));
const area = { x: 500, y: 40, width: 410, height: 350 };
const topLoss = Math.max(...history.map((h) => h.loss), 1e-9);
for (let i = 0; i <= 4; i++) picture.box(area.x, area.y + (area.height * i) / 4, area.width, 1, [225, 229, 238]);
const at = (index: number) => area.x + (area.width * index) / Math.max(1, history.length - 1);
const draw = (share: (h: (typeof history)[number]) => number, colour: Colour) =>
  history.slice(1).forEach((h, i) => {
    const from = history[i]!;
    picture.line(
      at(i),
      area.y + area.height * (1 - share(from)),
      at(i + 1),
      area.y + area.height * (1 - share(h)),
      colour,
      3,
    );
  });
draw((h) => h.loss / topLoss, RED);
draw((h) => h.held, BLUE);
picture.text("loss", 505, 12, RED, 2);
picture.text("accuracy", 580, 12, BLUE, 2);
picture.text(`${(accuracy * 100).toFixed(1)}% on the test set`, 505, 446, INK, 2);
picture.text("epochs", 840, 404, GREY, 2);
writeFileSync(plotFile, picture.png());
console.log("wrote metrics and plot");
