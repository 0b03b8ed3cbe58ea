/** The newest `capacity` points (time, x, y) of a path; older ones are overwritten in place. */
export class PointRing {
  private readonly data: Float64Array;
  private next = 0;
  private filled = 0;

  constructor(readonly capacity: number) {
    this.data = new Float64Array(capacity * 3);
  }

  get length(): number {
    return this.filled;
  }

  push(timeMs: number, x: number, y: number): void {
    this.data.set([timeMs, x, y], this.next * 3);
    this.next = (this.next + 1) % this.capacity;
    this.filled = Math.min(this.filled + 1, this.capacity);
  }

  /** Visits the points from the oldest to the newest, leaving out those before `sinceMs`. */
  forEach(sinceMs: number, visit: (timeMs: number, x: number, y: number) => void): void {
    const start = (this.next - this.filled + this.capacity) % this.capacity;
    for (let i = 0; i < this.filled; i++) {
      const at = ((start + i) % this.capacity) * 3;
      const timeMs = this.data[at] as number;
      if (timeMs >= sinceMs) visit(timeMs, this.data[at + 1] as number, this.data[at + 2] as number);
    }
  }

  clear(): void {
    this.filled = 0;
  }
}
