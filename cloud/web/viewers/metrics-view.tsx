// Figures as cards: the value large, shares with a bar.
import { formatFigure } from "../parts/format.ts";
import { isShare, wordsOf, type MetricGroup } from "./metrics.ts";

export function MetricsView({ groups }: { groups: MetricGroup[] }) {
  return (
    <div style={{ overflow: "auto", flex: 1, minHeight: 0, padding: 16 }}>
      {groups.map((group) => (
        <section key={group.title} style={{ marginBottom: 18 }}>
          {group.title !== "" && (
            <h3 style={{ fontSize: 12, fontWeight: 600, margin: "0 0 8px" }}>{wordsOf(group.title)}</h3>
          )}
          <div className="metric-grid">
            {group.figures.map((figure) => (
              <div
                key={figure.name}
                className="card"
                style={{ padding: "11px 14px" }}
                title={`${figure.name}: ${figure.value}`}
              >
                <div className="dim small clip">{wordsOf(figure.name)}</div>
                <div className="figure">
                  {isShare(figure.name, figure.value)
                    ? `${formatFigure(Number((figure.value * 100).toFixed(2)))} %`
                    : formatFigure(figure.value)}
                </div>
                {isShare(figure.name, figure.value) && (
                  <div className="bar" style={{ marginTop: 8 }} aria-hidden>
                    <i style={{ width: `${figure.value * 100}%` }} />
                  </div>
                )}
              </div>
            ))}
          </div>
        </section>
      ))}
    </div>
  );
}
