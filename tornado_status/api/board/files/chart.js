// The chart of check-ins per second. uPlot (vendor/) draws it in the page's colours.

const HEIGHT = 120;
const STEPS_S = [60, 120, 300]; // between two labels, which show minutes
const HALF_LABEL = 30; // room for the right half of the last one

export class Chart {
  constructor(place) {
    this.place = place;
    this.plot = null;
    this.data = [[], []];
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => this.make());
    new ResizeObserver(() => this.plot?.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
    this.make();
  }

  show(data) {
    this.data = data;
    this.plot.setData(data);
  }

  make() {
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    this.plot?.destroy();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--edge"), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot(
      {
        width: this.place.clientWidth || 600,
        height: HEIGHT,
        padding: [null, HALF_LABEL, null, null],
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
        axes: [
          { ...axis, size: 30, space: 90, incrs: STEPS_S, values: (_, times) => times.map(clock) },
          { ...axis, size: 44, space: 28, values: (_, counts) => counts.map((count) => (Number.isInteger(count) ? count : "")) },
        ],
        series: [{}, { stroke: colour("--online"), fill: colour("--online-soft"), width: 1.5, points: { show: false } }],
      },
      this.data,
      this.place,
    );
  }
}

function clock(second) {
  return new Date(second * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
}
